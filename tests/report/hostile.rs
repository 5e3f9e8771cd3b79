//! Text of a model shows as text in every output.

use llama_quant::verdict::report::escape;

use super::synthetic::{Recipe, everything};
use super::{File, files, text};

/// Markup of every output, formulas, and characters that act by being there.
const HOSTILE: &str = "=HYPERLINK(\"http://x.y\")<script>alert(1)</script><img src=x onerror=alert(2)>\
    </table></details>|`code`**bold**_em_[a](javascript:b)![i](u)$x^2$\\input{/etc/passwd}%&#{}~\
    \u{202E}gnp\u{2066}\u{200B}\u{0007}\u{001B}[31m\r\n\n# heading\n| a | b |\n:tada: @user www.x.y ";

fn hostile_report() -> Vec<File> {
    let recipe = Recipe {
        text: Some(HOSTILE),
        model: "<b>|`$m\\input{x}",
        stories: 12,
        ..Recipe::default()
    };
    files(&everything(&recipe)).unwrap()
}

fn texts(files: &[File]) -> impl Iterator<Item = (&str, &str)> {
    let readable = files.iter().filter(|file| !file.path.ends_with(".png"));
    readable.map(|file| {
        (
            file.path.as_str(),
            std::str::from_utf8(&file.bytes).unwrap(),
        )
    })
}

#[test]
fn the_page_has_no_tag_that_the_templates_do_not_write() {
    let known = "!doctype !-- html head meta title style body header main nav section h1 h2 h3 p a \
        strong ol ul li figure figcaption div details summary table thead tbody tr th td svg rect \
        line polyline polygon circle text";
    let known: Vec<&str> = known.split_whitespace().collect();
    let hostile = hostile_report();
    let page = text(&hostile, "index.html");
    assert!(
        page.contains("&lt;script&gt;alert(1)"),
        "the text is there to be seen"
    );
    for (at, _) in page.match_indices('<') {
        let tag = page[at + 1..].trim_start_matches('/');
        let end = tag.find(|c: char| !(c.is_ascii_alphanumeric() || c == '!' || c == '-'));
        let tag = &tag[..end.unwrap_or(tag.len())];
        assert!(known.contains(&tag), "<{tag}> in the page");
    }
    let pictures = page.matches("<figure>").count();
    assert_eq!(page.matches("<svg").count(), pictures);
    // As many of each as without hostile text.
    let plain = files(&everything(&Recipe {
        stories: 12,
        ..Recipe::default()
    }))
    .unwrap();
    let plain = text(&plain, "index.html");
    for tag in [
        "<table",
        "</table>",
        "<td",
        "<tr",
        "<details",
        "</details>",
        "</section>",
    ] {
        assert_eq!(
            page.matches(tag).count(),
            plain.matches(tag).count(),
            "{tag}"
        );
    }
}

#[test]
fn a_row_of_markdown_has_as_many_cells_as_its_table_and_no_live_markup() {
    let hostile = hostile_report();
    let report = text(&hostile, "REPORT.md");
    let mut columns = 0;
    for line in report.lines() {
        if line.starts_with('|') {
            let cells = line.matches('|').count();
            columns = if columns == 0 { cells } else { columns };
            assert_eq!(cells, columns, "{line}");
        } else {
            columns = 0;
        }
        let ours = line.starts_with("<!-- Written by") || line.starts_with("<details>");
        if !ours && line != "</details>" {
            assert!(!line.contains(['<', '`', '$', '\\']), "{line}");
        }
        for live in ["](javascript", "http:/", "www.", ":tada", "@user", "_em_"] {
            assert!(!line.contains(live), "{live} in {line}");
        }
    }
}

#[test]
fn latex_has_no_command_that_was_not_written_by_the_template_or_the_escape() {
    let known = "begin end toprule midrule bottomrule usepackage textbackslash textasciicircum \
        textasciitilde textless textgreater textbar textquotedblright textasciigrave \
        textquotesingle ldots pm";
    let known: Vec<&str> = known.split_whitespace().collect();
    for (path, table) in texts(&hostile_report()).filter(|(path, _)| path.ends_with(".tex")) {
        for (at, _) in table.match_indices('\\') {
            let rest = &table[at + 1..];
            if table[..at].ends_with('\\')
                || rest.starts_with(['\\', '{', '}', '$', '&', '#', '_', '%'])
            {
                continue;
            }
            let end = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            assert!(
                known.contains(&&rest[..end]),
                "\\{} in {path}",
                &rest[..end]
            );
        }
        assert!(
            table.is_ascii() || !table.contains(|c: char| c > 'ÿ'),
            "{path}"
        );
    }
}

#[test]
fn no_field_of_a_csv_file_is_a_formula() {
    let hostile = hostile_report();
    let mut fields = 0;
    for (path, table) in texts(&hostile).filter(|(path, _)| path.ends_with(".csv")) {
        let mut widths = table.split("\r\n").filter(|l| !l.is_empty()).map(|line| {
            let row = parse(line);
            for field in &row {
                let number = field.parse::<f64>().is_ok();
                let formula = field.trim_start().starts_with(['=', '+', '-', '@']);
                assert!(number || !formula, "{field:?} in {path}");
            }
            row.len()
        });
        let width = widths.next().unwrap();
        assert!(widths.all(|w| w == width), "{path} is not rectangular");
        fields += width;
    }
    assert!(fields > 50);
}

/// The fields of one line of a CSV file (RFC 4180).
fn parse(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => field.extend(rest.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[test]
fn characters_that_act_by_being_there_are_shown_as_signs() {
    for (path, text) in texts(&hostile_report()) {
        let acting = text.chars().find(|&c| {
            c.is_control() && c != '\n' && !(c == '\r' && path.ends_with(".csv"))
                || ('\u{200B}'..='\u{200F}').contains(&c)
                || ('\u{202A}'..='\u{202E}').contains(&c)
                || ('\u{2066}'..='\u{2069}').contains(&c)
        });
        assert_eq!(acting, None, "in {path}");
    }
    let shown = escape::visible("a\u{202E}b\u{0007}\nc");
    assert_eq!(shown, "a⟨U+202E⟩b⟨U+0007⟩⏎c");
}

#[test]
fn names_of_folders_cannot_lead_files_elsewhere() {
    for file in hostile_report() {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-./".contains(c);
        assert!(
            file.path.chars().all(plain) && !file.path.contains(".."),
            "{}",
            file.path
        );
    }
}
