//! Models and data sets of the Hugging Face hub, through its cache.
//!
//! Layout of the cache, names of repositories and addresses are hf-hub's. Its
//! downloads are not used: METHOD.md says what they lack.

mod cache;
mod client;
mod files;
pub mod id;
pub mod settings;
mod transfer;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use hf_hub::api::RepoInfo;
use indicatif::ProgressBar;
use serde::Deserialize;

pub use id::{Id, Kind};
pub use settings::Settings;

use self::cache::Store;
use self::client::{Client, Failure, FailureKind};
use self::transfer::Wanted;
use crate::error::{Error, Result};

/// The data set that `--dataset hub` stands for.
pub const COQA: &str = "EleutherAI/coqa";

/// A model or a data set on this machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The folder of a checkpoint, or the file of a data set.
    pub path: PathBuf,
    /// The id on the hub, or the name of the folder or file.
    pub name: String,
    /// The full commit hash; none for what does not come from the hub.
    pub revision: Option<String>,
}

impl Located {
    /// A folder or file that the user names by its path.
    pub fn local(path: PathBuf) -> Self {
        let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = whole.file_name().unwrap_or_default();
        Self {
            name: name.to_string_lossy().into_owned(),
            path,
            revision: None,
        }
    }
}

/// What a user names, by path or by id. A path that exists is meant as it
/// stands; an id that does not, or `hub` for [`COQA`], is of the hub that the
/// environment names. Anything else is a path, for its reader to refuse.
///
/// # Errors
/// [`Error::Hub`] with what can be done about it.
pub fn resolve(kind: Kind, given: &Path, progress: &ProgressBar) -> Result<Located> {
    let id = match given.to_str() {
        _ if given.exists() => None,
        Some("hub") if kind == Kind::Dataset => Some(COQA),
        Some(text) if Id::is_meant(text) && !names_a_file(given) => Some(text),
        _ => None,
    };
    let Some(id) = id else {
        return Ok(Located::local(given.to_path_buf()));
    };
    let located = Id::from_str(id)
        .and_then(|id| Hub::new(Settings::from_env()?)?.locate(kind, &id, progress));
    located.map_err(|error| match error {
        Error::Hub(mut why) => {
            why.remedy += &format!("; here, too, there is nothing called {id}");
            Error::Hub(why)
        }
        other => other,
    })
}

/// Whether the name is that of a file of stories, as no repository's is.
fn names_a_file(given: &Path) -> bool {
    let extension = given.extension().unwrap_or_default();
    ["json", "jsonl", "parquet"].iter().any(|e| extension == *e)
}

/// The hub, and the cache in front of it.
pub struct Hub {
    settings: Settings,
    client: Client,
    /// Whether files that are in the cache are read and summed again.
    verify: bool,
}

impl Hub {
    /// # Errors
    /// If the settings name certificates or a proxy that cannot be used.
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self {
            client: Client::new(settings.clone())?,
            settings,
            verify: false,
        })
    }

    /// A hub that also sums what it finds in the cache, and downloads again
    /// what is damaged.
    pub fn verifying(self) -> Self {
        Self {
            verify: true,
            ..self
        }
    }

    /// What the environment asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The checkpoint folder of a model, downloaded if need be.
    ///
    /// # Errors
    /// As for [`Hub::locate`].
    pub fn model(&self, id: &Id, progress: &ProgressBar) -> Result<Located> {
        self.locate(Kind::Model, id, progress)
    }

    /// The file of a data set's validation split, downloaded if need be.
    ///
    /// # Errors
    /// As for [`Hub::locate`].
    pub fn dataset(&self, id: &Id, progress: &ProgressBar) -> Result<Located> {
        self.locate(Kind::Dataset, id, progress)
    }

    /// What `kind` says of a repository: the folder of a model, whole or with
    /// its configuration alone, or the file of a data set; downloaded if need be.
    ///
    /// # Errors
    /// [`Error::Hub`] with what can be done about it.
    pub fn locate(&self, kind: Kind, id: &Id, progress: &ProgressBar) -> Result<Located> {
        let store = Store::new(&self.settings.cache, id, kind);
        if self.verify
            && let Some(commit) = store.commit()?
        {
            self.remove_damaged(&store, &commit)?;
        }
        // What a commit stands for never changes.
        if let Some(commit) = id.commit()
            && files::missing(kind, &store.snapshot(commit))?.is_empty()
        {
            return located(&store, commit);
        }
        if self.settings.offline {
            return from_cache(&store, "HF_HUB_OFFLINE is set");
        }
        match self.listing(&store) {
            Ok(listing) => Ok(self.fill(&store, &listing, progress)?),
            Err(failure) if failure.is_final() => Err(failure.into()),
            Err(failure) => match from_cache(&store, "the hub did not answer") {
                Ok(found) => {
                    let commit = found.revision.as_deref().unwrap_or_default();
                    let why = &failure.why.found;
                    tracing::warn!("{id}: using commit {commit} of the cache ({why})");
                    Ok(found)
                }
                Err(_) => Err(failure.into()),
            },
        }
    }

    /// Asks which commit the revision is and which files it has.
    fn listing(&self, store: &Store) -> std::result::Result<RepoInfo, Failure> {
        let thing = store.thing();
        let path = format!("/api/{}", store.repo.api_url());
        let text = match self.client.text(&thing, &path) {
            Ok(text) => text,
            Err(failure) => return Err(self.with_near_revisions(store, failure)),
        };
        let refuse = |found: String| {
            Failure::new(
                FailureKind::Final,
                thing.clone(),
                "its commit and its files, as JSON",
                found,
                "set HF_ENDPOINT to a hub or a mirror that works",
            )
        };
        let info: RepoInfo =
            serde_json::from_str(&text).map_err(|e| refuse(self.client.shown(&e.to_string())))?;
        if !id::is_commit(&info.sha) {
            return Err(refuse(format!(
                "the commit {:?}",
                self.client.shown(&info.sha)
            )));
        }
        if let Some(asked) = store.id.commit().filter(|asked| *asked != info.sha) {
            return Err(refuse(format!("commit {} instead of {asked}", info.sha)));
        }
        Ok(info)
    }

    /// Adds the revisions that there are to a refusal of one that is not.
    fn with_near_revisions(&self, store: &Store, mut failure: Failure) -> Failure {
        #[derive(Deserialize)]
        struct Refs {
            #[serde(default)]
            branches: Vec<Ref>,
            #[serde(default)]
            tags: Vec<Ref>,
        }
        #[derive(Deserialize)]
        struct Ref {
            name: String,
        }
        if !failure.why.found.starts_with("404") || store.id.revision == "main" {
            return failure;
        }
        let api = store.repo.api_url();
        let repository = api.split("/revision/").next().unwrap_or_default();
        let text = self
            .client
            .text(&store.thing(), &format!("/api/{repository}/refs"));
        let refs = text
            .ok()
            .and_then(|text| serde_json::from_str::<Refs>(&text).ok());
        if let Some(Refs { branches, tags }) = refs {
            let names = branches.iter().chain(&tags).map(|r| r.name.as_str());
            let near = files::nearest(&store.id.revision, names);
            failure.why.wanted = "a revision of that name".to_owned();
            failure.why.remedy = format!("the nearest are {}", self.client.shown(&near));
        }
        failure
    }

    /// Downloads what the cache lacks of a commit.
    fn fill(
        &self,
        store: &Store,
        listing: &RepoInfo,
        progress: &ProgressBar,
    ) -> std::result::Result<Located, Failure> {
        let commit = listing.sha.as_str();
        let names: Vec<&str> = listing
            .siblings
            .iter()
            .map(|s| s.rfilename.as_str())
            .collect();
        self.remove_damaged_if_asked(store, commit)?;
        let snapshot = store.snapshot(commit);
        for name in files::first(store, &names)? {
            self.fetch(store, commit, &name, progress)?;
        }
        // Which shards there are stands in the index, which is there now.
        for name in files::missing(store.kind, &snapshot)? {
            if !names.contains(&name.as_str()) {
                return Err(files::not_listed(store, &name, &names));
            }
            self.fetch(store, commit, &name, progress)?;
        }
        store.remember(commit)?;
        Ok(located(store, commit)?)
    }

    fn fetch(
        &self,
        store: &Store,
        commit: &str,
        name: &str,
        progress: &ProgressBar,
    ) -> std::result::Result<(), Failure> {
        if store.snapshot(commit).join(name).is_file() {
            return Ok(());
        }
        let wanted = Wanted {
            store,
            commit,
            name,
        };
        transfer::fetch(&self.client, &self.settings, &wanted, progress)
    }

    fn remove_damaged_if_asked(
        &self,
        store: &Store,
        commit: &str,
    ) -> std::result::Result<(), Failure> {
        if self.verify {
            self.remove_damaged(store, commit)?;
        }
        Ok(())
    }

    /// Removes files of a commit whose content is not what their name says.
    fn remove_damaged(&self, store: &Store, commit: &str) -> Result<()> {
        for (name, path) in files::present(&store.snapshot(commit))? {
            store.check_inside(&path)?;
            let blob = path
                .canonicalize()
                .map_err(|e| Error::io("open", &path, e))?;
            let sum = blob
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            // Copies in place of links have no checksum in their name.
            if !id::is_hex(sum) || !matches!(sum.len(), 40 | 64) {
                continue;
            }
            if !transfer::is_whole(&blob, sum).map_err(|e| Error::io("read", &blob, e))? {
                if self.settings.offline {
                    return Err(Error::hub(
                        path.display().to_string(),
                        format!("content with the checksum {sum}"),
                        "other content",
                        "unset HF_HUB_OFFLINE and run `llama-quant fetch` to download it again",
                    ));
                }
                tracing::warn!("{}: {name} is damaged and downloaded again", store.thing());
                store.remove(commit, &name)?;
            }
        }
        Ok(())
    }
}

/// The files of a commit that are all there.
fn located(store: &Store, commit: &str) -> Result<Located> {
    let snapshot = store.snapshot(commit);
    for (_, path) in files::present(&snapshot)? {
        store.check_inside(&path)?;
    }
    Ok(Located {
        path: files::path(store.kind, &snapshot)?,
        name: store.id.name.clone(),
        revision: Some(commit.to_owned()),
    })
}

/// What the cache holds, without asking the hub.
fn from_cache(store: &Store, why: &str) -> Result<Located> {
    let refuse = |wanted: String, found: String| {
        Error::hub(
            store.thing(),
            wanted,
            format!("{found}, and {why}"),
            format!(
                "on a machine with network run `llama-quant fetch {} {}`",
                store.kind.option(),
                store.id
            ),
        )
    };
    let Some(commit) = store.commit()? else {
        let held = match store.commits().as_slice() {
            [] => "nothing of it".to_owned(),
            commits => format!("only {}", commits.join(", ")),
        };
        return Err(refuse("it in the cache".to_owned(), held));
    };
    let missing = files::missing(store.kind, &store.snapshot(&commit))?;
    if missing.is_empty() {
        return located(store, &commit);
    }
    let wanted = format!("{} in the cache", missing.join(", "));
    Err(refuse(wanted, format!("no such file of commit {commit}")))
}

/// Bytes of all files below `dir`, links followed, and their number.
pub fn size(dir: &Path) -> Result<(u64, usize)> {
    let mut bytes = 0;
    let present = files::present(dir)?;
    for (_, path) in &present {
        bytes += path
            .metadata()
            .map_err(|e| Error::io("open", path, e))?
            .len();
    }
    Ok((bytes, present.len()))
}
