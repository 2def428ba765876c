//! From a model's name to a directory: a local one, the Hugging Face cache, or a download into that cache.
//!
//! The environment variables are those of `huggingface_hub`, and so is the cache's layout
//! (`models--ORG--NAME/{refs,snapshots,blobs}`): what Python has fetched is found, and the other way round.

use std::fmt;
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::{Error, Result, read_if_present};
use super::weights::{INDEX, SINGLE, index_entries};

/// What is fetched where a model has it, weights apart.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// How to reach the hub and its cache.
#[derive(Clone, PartialEq, Eq)]
pub struct HubEnv {
    /// The directory that holds `models--ORG--NAME`.
    pub cache: PathBuf,
    /// Whether only the cache may be asked.
    pub offline: bool,
    /// Base URL, without a slash at its end.
    pub endpoint: String,
    /// Sent as a bearer token.
    pub token: Option<String>,
    /// Whether downloads show a bar on stderr (only on a terminal).
    pub progress: bool,
}

impl fmt::Debug for HubEnv {
    /// All but the token, which has no place in a log.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("HubEnv")
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl HubEnv {
    /// From the process's environment: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`,
    /// `TRANSFORMERS_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// From any source of variables; empty ones count as unset.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|value| !value.trim().is_empty());
        let user = PathBuf::from(get("HOME").unwrap_or_else(|| ".".into()));
        let path = |text: String| match text.strip_prefix("~/") {
            Some(rest) => user.join(rest),
            None => PathBuf::from(text),
        };
        let home = get("HF_HOME").map(path).unwrap_or_else(|| {
            let cache = get("XDG_CACHE_HOME").map(path);
            cache
                .unwrap_or_else(|| user.join(".cache"))
                .join("huggingface")
        });
        let cache = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE"));
        let is_on = |name: &str| {
            let value = get(name).map(|value| value.trim().to_ascii_uppercase());
            matches!(value.as_deref(), Some("1" | "ON" | "YES" | "TRUE"))
        };
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            cache: cache.map(path).unwrap_or_else(|| home.join("hub")),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: get("HF_TOKEN").map(|token| token.trim().to_string()),
            progress: true,
        }
    }
}

/// The directory of a model: `model` itself, or the hub id `org/name[@revision]` in the cache, fetched if need be.
///
/// # Errors
/// As [`resolve_in`].
pub fn resolve(model: &str) -> Result<PathBuf> {
    resolve_in(model, &HubEnv::from_env())
}

/// [`resolve`] with the environment given.
///
/// The cache is asked first and is enough where it holds config, tokenizer and all weights. Only the files that
/// streamgauge reads are fetched.
///
/// # Errors
/// Neither a directory nor a hub id; not in the cache while offline; unknown to the hub, gated, or out of reach.
pub fn resolve_in(model: &str, env: &HubEnv) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let no_such = |why: &str| Error::NoSuchModel {
        model: model.to_string(),
        why: why.to_string(),
    };
    if path.exists() {
        return Err(no_such(
            "it is a file; give the directory that holds config.json",
        ));
    }
    let Some(id) = HubId::parse(model) else {
        return Err(no_such(
            "neither a directory nor a hub id (org/name or org/name@revision)",
        ));
    };
    let cached = id.cached(&env.cache);
    if let Some(snapshot) = &cached
        && snapshot.join("tokenizer.json").exists()
        && missing(snapshot)?.is_none()
    {
        return Ok(snapshot.clone());
    }
    if !env.offline {
        let failed = match id.fetch(model, env) {
            Ok(snapshot) => return Ok(snapshot),
            Err(error) => error,
        };
        // A model without tokenizer.json is complete, only we could not ask.
        return match &cached {
            Some(snapshot) if missing(snapshot)?.is_none() => Ok(snapshot.clone()),
            _ => Err(failed),
        };
    }
    let what = match &cached {
        None => "it is".to_string(),
        Some(snapshot) => match missing(snapshot)? {
            None => return Ok(snapshot.clone()),
            Some(file) => format!("its {file} is"),
        },
    };
    Err(Error::Offline {
        model: model.to_string(),
        missing: what,
        cache: env.cache.clone(),
    })
}

/// The first needed file that a snapshot lacks.
fn missing(snapshot: &Path) -> Result<Option<String>> {
    let lacks = |file: &str| !snapshot.join(file).exists();
    if lacks("config.json") {
        return Ok(Some("config.json".into()));
    }
    if !lacks(SINGLE) {
        return Ok(None);
    }
    let path = snapshot.join(INDEX);
    let Some(index) = read_if_present(&path)? else {
        return Ok(Some(SINGLE.into()));
    };
    let files = index_entries(&index, &path)?;
    Ok(files
        .into_iter()
        .map(|(_, file)| file)
        .find(|file| lacks(file)))
}

/// `org/name[@revision]`.
struct HubId {
    repo: String,
    revision: String,
}

impl HubId {
    fn parse(text: &str) -> Option<Self> {
        let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repo.split_once('/')?;
        let is_name = |part: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with(['.', '-']) && part.chars().all(plain)
        };
        // A revision may have slashes (refs/pr/1), each part a name: it becomes a path in the cache.
        let good = is_name(org) && is_name(name) && revision.split('/').all(is_name);
        good.then(|| Self {
            repo: repo.to_string(),
            revision: revision.to_string(),
        })
    }

    fn in_cache(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.repo.replace('/', "--")))
    }

    /// The snapshot that the cache has for the revision, complete or not.
    fn cached(&self, cache: &Path) -> Option<PathBuf> {
        let repo = self.in_cache(cache);
        let commit = match std::fs::read_to_string(repo.join("refs").join(&self.revision)) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) => self.revision.clone(),
        };
        let snapshot = is_commit(&commit).then(|| repo.join("snapshots").join(commit))?;
        snapshot.is_dir().then_some(snapshot)
    }

    fn fetch(&self, model: &str, env: &HubEnv) -> Result<PathBuf> {
        let failed = |what: &str, error: ApiError| self.explain(model, env, what, &error);
        let io = |source: std::io::Error| Error::Io {
            path: env.cache.clone(),
            source,
        };
        // hf-hub links snapshots to blobs by paths that must both be absolute.
        let cache = Cache::new(std::path::absolute(&env.cache).map_err(io)?);
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(env.endpoint.clone())
            .with_token(env.token.clone())
            .with_retries(3)
            .build()
            .map_err(|e| failed("a connection", e))?;
        let at = |revision: &str| {
            Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_string())
        };
        let info = api.repo(at(&self.revision)).info();
        let info = info.map_err(|e| failed("the list of files", e))?;
        if !is_commit(&info.sha) {
            return Err(self.answer(model, env, "the list of files", "it names no commit"));
        }
        // Every file from the one commit that the list is of, however long this takes.
        let repo = api.repo(at(&info.sha));
        let has = |file: &str| info.siblings.iter().any(|s| s.rfilename == file);
        let get = |file: &str| self.get(model, env, &repo, &info.sha, file);
        if !has("config.json") {
            return Err(self.answer(model, env, "config.json", "the model has none"));
        }
        for file in SMALL_FILES.into_iter().filter(|file| has(file)) {
            get(file)?;
        }
        if has(SINGLE) {
            get(SINGLE)?;
        } else if has(INDEX) {
            let path = get(INDEX)?;
            let bytes = super::error::read(&path)?;
            let mut files: Vec<_> = index_entries(&bytes, &path)?
                .into_iter()
                .map(|(_, f)| f)
                .collect();
            files.sort();
            files.dedup();
            for file in files {
                get(&file)?;
            }
        } else {
            let why = format!("the model has no {SINGLE}; only safetensors weights are read");
            return Err(self.answer(model, env, SINGLE, &why));
        }
        cache
            .repo(at(&self.revision))
            .create_ref(&info.sha)
            .map_err(io)?;
        Ok(self
            .in_cache(cache.path())
            .join("snapshots")
            .join(&info.sha))
    }

    /// A file of a commit, from its snapshot if it is there.
    fn get(
        &self,
        model: &str,
        env: &HubEnv,
        repo: &ApiRepo,
        commit: &str,
        file: &str,
    ) -> Result<PathBuf> {
        let path = self
            .in_cache(&env.cache)
            .join("snapshots")
            .join(commit)
            .join(file);
        if path.exists() {
            return Ok(path);
        }
        let bar = Bar::new(env.progress);
        repo.download_with_progress(file, bar)
            .map_err(|e| self.explain(model, env, file, &e))
    }

    fn explain(&self, model: &str, env: &HubEnv, what: &str, error: &ApiError) -> Error {
        let said = error.to_string().replace('\n', " ");
        // hf-hub gives no status code of its own; ureq's message ends with it.
        if said.ends_with("http status: 404") {
            let why = format!(
                "{} knows no {what} for {} at revision {}",
                env.endpoint, self.repo, self.revision
            );
            return Error::NoSuchModel {
                model: model.to_string(),
                why,
            };
        }
        let refused = ["http status: 401", "http status: 403"];
        if refused.iter().any(|status| said.ends_with(status)) {
            let why = "there is none of that name, or it is private or gated: set HF_TOKEN to a token that may read it";
            return Error::NoSuchModel {
                model: model.to_string(),
                why: why.into(),
            };
        }
        let why = format!("{said}; try again, or fetch it yourself and give the directory");
        self.answer(model, env, what, &why)
    }

    fn answer(&self, model: &str, env: &HubEnv, what: &str, why: &str) -> Error {
        Error::Hub {
            model: model.to_string(),
            what: format!("fetching {what}"),
            endpoint: env.endpoint.clone(),
            why: why.to_string(),
        }
    }
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// A download's progress on stderr; silent where stderr is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(shown: bool) -> Self {
        let target = match shown {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self(ProgressBar::with_draw_target(None, target))
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, filename: &str) {
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            self.0.set_style(style);
        }
        self.0.set_length(size as u64);
        // hf-hub begins again here after each broken connection.
        self.0.set_position(0);
        self.0.set_message(filename.to_string());
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> HubEnv {
        HubEnv::from_lookup(|name| {
            let value = pairs.iter().find(|(key, _)| *key == name);
            value.map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let cache = |pairs: &[(&str, &str)]| {
            let home = [("HOME", "/u")];
            env(&[pairs, &home].concat()).cache
        };
        assert_eq!(cache(&[]), Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]),
            Path::new("/h/hub")
        );
        assert_eq!(cache(&[("HF_HOME", "~/h")]), Path::new("/u/h/hub"));
        assert_eq!(
            cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]),
            Path::new("/c")
        );
        for (value, offline) in [
            ("1", true),
            ("true", true),
            ("Yes", true),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(env(&[("HF_HUB_OFFLINE", value)]).offline, offline);
        }
        let mirror = env(&[
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_TOKEN", " t\n"),
        ]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(mirror.token.as_deref(), Some("t"));
        assert_eq!(env(&[]).endpoint, "https://huggingface.co");
    }

    #[test]
    fn only_org_and_name_are_a_hub_id() {
        for good in [
            "org/name",
            "a-b/c.d_e",
            "org/name@refs/pr/1",
            "org/name@0123abc",
        ] {
            assert!(HubId::parse(good).is_some(), "{good}");
        }
        for bad in [
            "name",
            "/etc",
            "../x",
            "org/..",
            "a/b/c",
            "./a",
            "org/",
            "org/na me",
            "o/n@",
            "o/n@../x",
            "o/n@a//b",
        ] {
            assert!(HubId::parse(bad).is_none(), "{bad}");
        }
    }
}
