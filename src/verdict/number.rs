//! How a number is printed: its unit, its digits, its sign.

use crate::quant::size::MIB;

/// The kinds of numbers in a report. Findings are in base units (0..1, bytes,
/// seconds, nats); this is where they are turned into what a reader expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Not a number.
    Text,
    /// A whole number.
    Count,
    /// F1 or EM, 0..1, three decimals.
    Score,
    /// A difference of scores, in points (hundredths), with its sign.
    Points,
    /// A size of a difference of scores, in points, without a sign.
    Distance,
    /// A share, in per cent.
    Percent,
    /// A p value.
    Probability,
    /// Bytes, printed in MiB.
    Mebibytes,
    /// Already in MiB.
    OfMebibytes,
    /// Seconds.
    Seconds,
    /// Seconds, printed in milliseconds.
    Milliseconds,
    /// Already in milliseconds.
    OfMilliseconds,
    /// Nats, three significant digits.
    Nats,
    /// Of something a second, three significant digits.
    PerSecond,
    /// Bytes a second, printed in GB (1e9) a second, three significant digits.
    Bandwidth,
    /// Operations a second, printed in 1e12, three significant digits.
    Teraflops,
    /// Joules, three significant digits.
    Joules,
    /// A factor or a statistic, with the given number of decimals.
    Plain(usize),
}

impl Unit {
    /// What a finding is multiplied by before it is printed.
    pub fn scale(self) -> f64 {
        match self {
            Self::Points | Self::Distance | Self::Percent => 100.0,
            Self::Mebibytes => 1.0 / MIB,
            Self::Milliseconds => 1e3,
            Self::Bandwidth => 1e-9,
            Self::Teraflops => 1e-12,
            _ => 1.0,
        }
    }

    /// `finding` as the report prints it.
    pub fn print(self, finding: f64) -> String {
        let value = self.scale() * finding;
        match self {
            Self::Text | Self::Count => format!("{value:.0}"),
            Self::Score => fixed(value, 3),
            Self::Points => signed(value),
            Self::Distance | Self::Percent => fixed(value, 1),
            Self::Probability if value < 0.001 => "<0.001".to_owned(),
            Self::Probability => fixed(value, 3),
            Self::Mebibytes => fixed(value, 3),
            Self::OfMebibytes => fixed(value, 2),
            Self::Seconds => fixed(value, 2),
            Self::Milliseconds
            | Self::OfMilliseconds
            | Self::Nats
            | Self::PerSecond
            | Self::Bandwidth
            | Self::Teraflops
            | Self::Joules => significant(value, 3),
            Self::Plain(decimals) => fixed(value, decimals),
        }
    }
}

/// A margin in points, with a decimal only if it needs one.
pub fn margin(margin: f64) -> String {
    ((1e3 * margin).round() / 10.0).to_string()
}

/// A margin as words: `3 points`.
pub fn points(of_margin: f64) -> String {
    match margin(of_margin) {
        one if one == "1" => "1 point".to_owned(),
        many => format!("{many} points"),
    }
}

/// With so many decimals, and no sign on what rounds to 0.
fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| b == b'0' || b == b'.') => rest.to_owned(),
        _ => text,
    }
}

/// With one decimal and a sign, unless it rounds to 0.
fn signed(value: f64) -> String {
    match fixed(value, 1) {
        text if value > 0.0 && text != "0.0" => format!("+{text}"),
        text => text,
    }
}

/// Rounded to `digits` significant digits, written out without an exponent.
pub fn significant(value: f64, digits: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    // The exponent after rounding: 9.999 has that of 10.0.
    let scientific = format!("{value:.*e}", (digits - 1) as usize);
    let exponent: i32 = scientific
        .split_once('e')
        .and_then(|(_, e)| e.parse().ok())
        .unwrap_or(0);
    let decimals = (digits - 1 - exponent).max(0) as usize;
    fixed(value, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_when_printed_and_zero_has_no_sign() {
        let cases = [
            (Unit::Points, 0.0123, "+1.2"),
            (Unit::Points, -0.0123, "-1.2"),
            (Unit::Points, -0.0001, "0.0"),
            (Unit::Score, 0.62549, "0.625"),
            (Unit::Percent, 0.5, "50.0"),
            (Unit::Probability, 0.0004, "<0.001"),
            (Unit::Mebibytes, 1_572_864.0, "1.500"),
            (Unit::Milliseconds, 0.000_232_9, "0.233"),
            (Unit::Nats, 0.000_412_6, "0.000413"),
            (Unit::Nats, 9.999, "10.0"),
            (Unit::Nats, 12_345.0, "12345"),
            (Unit::Count, 7.0, "7"),
            (Unit::PerSecond, 38_412.7, "38413"),
            (Unit::Bandwidth, 4.1e12, "4100"),
            (Unit::Teraflops, 7.127e14, "713"),
            (Unit::Joules, 0.012_34, "0.0123"),
        ];
        for (unit, finding, printed) in cases {
            assert_eq!(unit.print(finding), printed, "{unit:?} of {finding}");
        }
    }
}
