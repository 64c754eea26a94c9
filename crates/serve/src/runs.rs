//! Training runs as they go: what their folders say, for the page at `/runs`.
//!
//! A run is a folder with a `metrics.jsonl`, a line a step, and a `samples.jsonl` beside it. Both are read as they lie
//! there; a last line that is still being written is left out.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{Path as Part, State};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::page::page;

/// Bytes of samples that are shown, from the end: the latest.
const SAMPLE_BYTES: u64 = 256 << 10;

/// The page at `/runs`, the list of runs as `/runs.json`, and each run as `/runs/NAME`.
pub fn router(folder: &Path) -> Router {
    Router::new()
        .route("/runs", get(|| async { page(include_str!("page/runs.html")) }))
        .route("/runs.json", get(list))
        .route("/runs/{name}", get(show))
        .with_state(Arc::new(folder.to_path_buf()))
}

async fn list(State(folder): State<Arc<PathBuf>>) -> Result<Json<Value>> {
    on_disk(move || {
        let mut runs: Vec<(u64, Value)> = Vec::new();
        for entry in std::fs::read_dir(&*folder).into_iter().flatten().flatten() {
            let path = entry.path().join("metrics.jsonl");
            let (Ok(about), Some(name)) = (path.metadata(), entry.file_name().to_str().map(str::to_owned))
            else {
                continue;
            };
            let modified = about
                .modified()
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            let modified = modified.map_or(0, |since| since.as_secs());
            let last = rows(&path, SAMPLE_BYTES).pop();
            runs.push((
                modified,
                json!({"name": name, "modified": modified, "last": last}),
            ));
        }
        runs.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
        let runs: Vec<Value> = runs.into_iter().map(|(_, run)| run).collect();
        Ok(json!({"runs": runs}))
    })
    .await
}

async fn show(State(folder): State<Arc<PathBuf>>, Part(name): Part<String>) -> Result<Json<Value>> {
    on_disk(move || {
        // Only what the folder itself lists: a name is no path.
        let listed = std::fs::read_dir(&*folder).into_iter().flatten().flatten();
        let run = listed
            .filter(|entry| entry.file_name().to_str() == Some(name.as_str()))
            .map(|entry| entry.path())
            .find(|path| path.join("metrics.jsonl").is_file())
            .ok_or_else(|| Error::UnknownPath(format!("/runs/{name}")))?;
        Ok(json!({
            "name": name,
            "metrics": rows(&run.join("metrics.jsonl"), u64::MAX),
            "samples": rows(&run.join("samples.jsonl"), SAMPLE_BYTES),
            "alarms": rows(&run.join("alarms.jsonl"), SAMPLE_BYTES),
        }))
    })
    .await
}

async fn on_disk(read: impl FnOnce() -> Result<Value> + Send + 'static) -> Result<Json<Value>> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|error| Error::Internal(error.to_string()))?
        .map(Json)
}

/// The JSON lines within the last `most` bytes of a file; none of a file that is not there.
fn rows(path: &Path, most: u64) -> Vec<Value> {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(most);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, StatusCode};
    use tower::ServiceExt;

    use super::*;

    async fn ask(app: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn runs_are_read_as_they_lie_there() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("runs/first");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::create_dir_all(folder.path().join("runs/empty")).unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"secret\": 1}\n").unwrap();
        std::fs::write(run.join("metrics.jsonl"), "{\"step\": 1}\n{\"step\": 2}\n{\"st").unwrap();
        let app = router(&folder.path().join("runs"));
        let (status, text) = ask(&app, "/runs.json").await;
        let runs: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(runs["runs"].as_array().unwrap().len(), 1);
        assert_eq!(runs["runs"][0]["last"], json!({"step": 2}));
        let run: Value = serde_json::from_str(&ask(&app, "/runs/first").await.1).unwrap();
        assert_eq!(run["metrics"], json!([{"step": 1}, {"step": 2}]));
        assert_eq!(run["samples"], json!([]));
        for path in ["/runs/empty", "/runs/..", "/runs/%2e%2e", "/runs/first%2f.."] {
            assert_eq!(ask(&app, path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
