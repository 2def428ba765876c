//! Hub ids against a stand-in for the hub on loopback: what is asked, what lands in the cache, what is said when it fails.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use streamgauge::model::{HubEnv, resolve_in};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that holds one model, `org/name`, and remembers what it was asked for.
struct Hub {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn serve(files: &[(&str, &str)]) -> Self {
        let files: BTreeMap<String, String> = files
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up early is no concern of ours.
                let _ = answer(stream, &files, &log);
            }
        });
        Self { endpoint, asked }
    }

    fn env(&self, cache: &Path) -> HubEnv {
        HubEnv {
            cache: cache.to_path_buf(),
            offline: false,
            endpoint: self.endpoint.clone(),
            token: Some("secret".into()),
            progress: false,
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, String>,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut range, mut token) = (None, false);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            break;
        }
        let header = header.trim().to_ascii_lowercase();
        range = header
            .strip_prefix("range: bytes=")
            .map(String::from)
            .or(range);
        token |= header == "authorization: bearer secret";
    }
    log.lock().unwrap().push(path.clone());
    let (status, headers, body) = respond(&path, range.as_deref(), token, files);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn respond(
    path: &str,
    range: Option<&str>,
    token: bool,
    files: &BTreeMap<String, String>,
) -> (&'static str, String, String) {
    let nothing = |status| (status, String::new(), String::new());
    if path.starts_with("/api/models/org/gated/") {
        return nothing("403 Forbidden");
    }
    if path.starts_with("/api/models/org/broken/") {
        return nothing("500 Internal Server Error");
    }
    if !token {
        return nothing("401 Unauthorized");
    }
    if path == "/api/models/org/name/revision/main" || path == "/api/models/org/name/revision/v1" {
        let siblings: Vec<_> = files
            .keys()
            .map(|file| serde_json::json!({"rfilename": file}))
            .collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return (
            "200 OK",
            "Content-Type: application/json\r\n".into(),
            info.to_string(),
        );
    }
    let file = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let Some(text) = file.and_then(|file| files.get(file)) else {
        return nothing("404 Not Found");
    };
    let (start, end) = range.and_then(|r| r.split_once('-')).unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end
        .parse()
        .map_or(text.len(), |end: usize| end + 1)
        .min(text.len());
    let headers = format!(
        "ETag: \"etag-{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        text.len(),
        end.saturating_sub(1),
        text.len()
    );
    ("206 Partial Content", headers, text[start..end].to_string())
}

/// Files of distinct lengths, so that their etags differ.
const MODEL: [(&str, &str); 6] = [
    ("config.json", "{}"),
    ("tokenizer.json", "{ }"),
    ("chat_template.jinja", "hello"),
    ("model.safetensors", "weights of the model"),
    ("README.md", "not needed by anyone here"),
    ("pytorch_model.bin", "a pickle, which is not read"),
];

fn said(model: &str, env: &HubEnv) -> String {
    let said = resolve_in(model, env).unwrap_err().to_string();
    assert!(!said.contains('\n'), "{said}");
    said
}

#[test]
fn a_model_is_fetched_once_and_found_in_the_cache_afterwards() {
    let hub = Hub::serve(&MODEL);
    let cache = tempfile::tempdir().unwrap();
    let mut env = hub.env(cache.path());
    let dir = resolve_in("org/name", &env).unwrap();
    let repo = cache.path().join("models--org--name");
    assert_eq!(dir, repo.join("snapshots").join(COMMIT));
    for (file, text) in &MODEL[..4] {
        assert_eq!(&std::fs::read_to_string(dir.join(file)).unwrap(), text);
    }
    assert!(!dir.join("README.md").exists() && !dir.join("pytorch_model.bin").exists());
    assert_eq!(
        std::fs::read_to_string(repo.join("refs/main")).unwrap(),
        COMMIT
    );

    let asked = hub.asked().len();
    assert_eq!(resolve_in("org/name", &env).unwrap(), dir);
    assert_eq!(
        resolve_in(&format!("org/name@{COMMIT}"), &env).unwrap(),
        dir
    );
    assert_eq!(hub.asked().len(), asked, "the cache is enough");
    env.offline = true;
    assert_eq!(resolve_in("org/name", &env).unwrap(), dir);
}

#[test]
fn a_revision_and_the_shards_of_an_index_are_fetched() {
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let hub = Hub::serve(&[
        ("config.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two!"),
    ]);
    let cache = tempfile::tempdir().unwrap();
    let mut env = hub.env(cache.path());
    let dir = resolve_in("org/name@v1", &env).unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.join("model-2.safetensors")).unwrap(),
        "two!"
    );
    assert!(cache.path().join("models--org--name/refs/v1").exists());

    // An interrupted fetch is taken up where it stopped, and offline it is named.
    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    env.offline = true;
    let said = said("org/name@v1", &env);
    assert!(
        said.contains("its model-2.safetensors is not in the cache"),
        "{said}"
    );
    env.offline = false;
    assert_eq!(resolve_in("org/name@v1", &env).unwrap(), dir);
    assert!(dir.join("model-2.safetensors").exists());
}

#[test]
fn offline_and_not_cached_says_so_with_the_remedy() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&MODEL);
    let mut env = hub.env(cache.path());
    env.offline = true;
    let said = said("org/name", &env);
    assert!(
        said.contains("org/name: it is not in the cache") && said.contains("unset it"),
        "{said}"
    );
    assert!(hub.asked().is_empty());
}

#[test]
fn a_model_that_the_hub_does_not_know_is_no_such_model() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&MODEL);
    let mut env = hub.env(cache.path());
    assert!(said("org/absent", &env).contains("no such model: org/absent: "));
    assert!(said("org/name@v9", &env).contains("at revision v9"));
    assert!(said("org/gated", &env).contains("set HF_TOKEN"));
    let broken = said("org/broken", &env);
    assert!(
        broken.contains("fetching the list of files") && broken.contains("500"),
        "{broken}"
    );
    env.token = None;
    assert!(said("org/name", &env).contains("set HF_TOKEN"));
    env.endpoint = "http://127.0.0.1:1".into();
    assert!(said("org/name", &env).contains("try again"));
}

#[test]
fn a_model_without_safetensors_is_refused_before_anything_large_is_fetched() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&[("config.json", "{}"), ("pytorch_model.bin", "pickle")]);
    assert!(said("org/name", &hub.env(cache.path())).contains("only safetensors weights are read"));
    assert!(
        !hub.asked()
            .iter()
            .any(|path| path.contains("pytorch_model"))
    );
}

#[test]
fn a_directory_is_itself_and_anything_else_is_no_such_model() {
    let dir = tempfile::tempdir().unwrap();
    let env = HubEnv {
        cache: dir.path().join("cache"),
        offline: true,
        endpoint: "http://127.0.0.1:1".into(),
        token: None,
        progress: false,
    };
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve_in(path, &env).unwrap(), dir.path());
    let file = dir.path().join("model.safetensors");
    std::fs::write(&file, "x").unwrap();
    assert!(said(file.to_str().unwrap(), &env).contains("it is a file"));
    for name in ["smollm", "./absent", "/absent/model", "a/b/c"] {
        assert!(
            said(name, &env).contains("neither a directory nor a hub id"),
            "{name}"
        );
    }
}
