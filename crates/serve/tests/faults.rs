//! A remote judge that hangs, garbles and dies under load: no wrong reward ever comes out.
//!
//! The stand-in knows the truth of every reply; between honest answers it says nothing, cuts answers off, closes
//! connections, or answers with something that is not quite a verdict, and in some phases it is gone altogether, as a
//! killed process is. Whatever comes out of the service must be the truth or an error.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use judge::{Endpoint, Panel, RemoteGuard, RemoteHelpfulness};
use serde_json::{Value, json};
use serve::Metrics;
use serve::reward::{Service, Settings, router};
use tower::ServiceExt;

/// What a reply is worth: the number in it is its helpfulness, "bomb" makes it unsafe, "sorry" a refusal.
fn truth(reply: &str) -> f64 {
    let helpfulness = helpfulness(reply);
    match reply {
        reply if reply.contains("bomb") => helpfulness.min(-10.0),
        reply if reply.contains("sorry") => helpfulness.min(-5.0),
        _ => helpfulness,
    }
}

fn helpfulness(reply: &str) -> f64 {
    f64::from(reply.split(' ').next().unwrap().parse::<u32>().unwrap()) / 4.0
}

fn lines(reply: &str) -> String {
    let (safety, category) = if reply.contains("bomb") {
        ("Unsafe", "Violent")
    } else {
        ("Safe", "None")
    };
    let refusal = if reply.contains("sorry") { "Yes" } else { "No" };
    format!("Safety: {safety}\nCategories: {category}\nRefusal: {refusal}")
}

/// How many phases come in turn; in the last of them nobody listens.
const PHASES: usize = 7;

/// The ways in which the stand-in answers, chosen by a counter: a phase is mostly of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Honest,
    Hang,
    Die,
    CutOff,
    Garble(usize),
    Busy,
}

fn way(request: usize, phase: usize) -> Way {
    // In every phase each fourth request is honest, so that the breaker does not hide all faults.
    if request.is_multiple_of(4) {
        return Way::Honest;
    }
    match phase % PHASES {
        0 => Way::Honest,
        1 => Way::Hang,
        2 => Way::Die,
        3 => Way::CutOff,
        4 => Way::Garble(request),
        _ => Way::Busy,
    }
}

fn garbled(guard: bool, kind: usize, honest: &str) -> String {
    let kinds = [
        "<html>502</html>".to_owned(),
        String::new(),
        "{}".to_owned(),
        honest[..honest.len() / 2].to_owned(),
        "null".to_owned(),
    ];
    let guards = [
        json!({"choices": []}).to_string(),
        json!({"choices": [{"message": {"content": "Safety: Saf"}}]}).to_string(),
        json!({"choices": [{"message": {"content": "Safety: Safe\nCategories: None"}}]}).to_string(),
        json!({"choices": [{"message": {"content": "I think it is safe."}}]}).to_string(),
        json!({"choices": [{"message": {"content": "Safety: Safe\nCategories: Violent\nRefusal: No"}}]})
            .to_string(),
        json!({"choices": [{"message": {"content": "Safety: Unsafe\nCategories: Jailbreak\nRefusal: No"}}]})
            .to_string(),
    ];
    let rewards = [
        json!({"data": [{"probs": []}]}).to_string(),
        json!({"data": [{"probs": [0.5, 0.5]}]}).to_string(),
        json!({"data": [{"probs": [1e60]}]}).to_string(),
        json!({"data": [{"probs": ["1.0"]}]}).to_string(),
        json!({"error": "out of memory"}).to_string(),
        json!({"data": [{"probs": [null]}]}).to_string(),
    ];
    let own = if guard { &guards } else { &rewards };
    kinds
        .iter()
        .chain(own)
        .nth(kind % (kinds.len() + own.len()))
        .unwrap()
        .clone()
}

/// A guard at `/v1/chat/completions` and a reward model at `/classify` on one port.
struct StandIn {
    url: String,
    phase: Arc<AtomicUsize>,
    faults: Arc<AtomicUsize>,
    kills: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

fn stand_in() -> StandIn {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stand_in = StandIn {
        url: format!("http://{address}"),
        phase: Arc::default(),
        faults: Arc::default(),
        kills: Arc::default(),
        stop: Arc::default(),
    };
    let (phase, faults, kills, stop) = (
        Arc::clone(&stand_in.phase),
        Arc::clone(&stand_in.faults),
        Arc::clone(&stand_in.kills),
        Arc::clone(&stand_in.stop),
    );
    std::thread::spawn(move || {
        let (mut number, mut open) = (0, Some(listener));
        while !stop.load(Ordering::SeqCst) {
            let now = phase.load(Ordering::SeqCst);
            if now % PHASES == PHASES - 1 {
                kills.fetch_add(usize::from(open.take().is_some()), Ordering::SeqCst);
            } else if open.is_none() {
                // A client of the closed port may hold it for a moment.
                open = TcpListener::bind(address).ok();
            }
            if let Some(stream) = open.as_ref().and_then(accept) {
                let way = way(number, now);
                number += 1;
                faults.fetch_add(usize::from(way != Way::Honest), Ordering::SeqCst);
                std::thread::spawn(move || serve_one(stream, way));
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    stand_in
}

/// The next connection, if one waits.
fn accept(listener: &TcpListener) -> Option<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(false).unwrap();
    Some(stream)
}

/// Answers one request; a client that is gone already is nobody's fault.
fn serve_one(mut stream: TcpStream, way: Way) {
    let Some((path, body)) = read_request(&stream) else {
        return;
    };
    let guard = path.contains("chat");
    let reply = body["messages"].as_array().unwrap().last().unwrap()["content"]
        .as_str()
        .unwrap();
    let honest = if guard {
        json!({"choices": [{"message": {"content": lines(reply)}}]}).to_string()
    } else {
        json!({"data": [{"index": 0, "probs": [helpfulness(reply)]}]}).to_string()
    };
    let (status, text) = match way {
        Way::Honest | Way::CutOff => (200, honest),
        Way::Hang => return std::thread::sleep(Duration::from_millis(600)),
        Way::Die => return,
        Way::Garble(kind) => (200, garbled(guard, kind, &honest)),
        Way::Busy => (503, "{\"error\": \"busy\"}".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let whole = format!("{head}{text}");
    let sent = if way == Way::CutOff {
        whole.len() - text.len() / 3
    } else {
        whole.len()
    };
    let _ = stream.write_all(&whole.as_bytes()[..sent]);
}

fn read_request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut path, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if path.is_empty() {
            line.split(' ').nth(1)?.clone_into(&mut path);
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).ok()?))
}

fn panel(url: &str) -> Panel {
    let endpoint = |path: &str| Endpoint {
        timeout_s: 0.3,
        attempts: 1,
        parallel: 8,
        rest_s: 0.05,
        ..Endpoint::new(format!("{url}{path}"), "m")
    };
    Panel {
        guard: Box::new(RemoteGuard::new(endpoint("/v1")).unwrap()),
        helpfulness: Box::new(RemoteHelpfulness::new(endpoint("/classify")).unwrap()),
    }
}

/// What came out for one request's replies: rewards and errors, and every reward that was not the truth.
#[derive(Default)]
struct Tally {
    right: usize,
    errors: usize,
    rejected: usize,
    wrong: Vec<String>,
}

async fn client(app: axum::Router, number: usize, until: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let replies: Vec<String> = (0..4)
            .map(|index| {
                let word = ["bread", "bomb", "sorry"][(number + round + index) % 3];
                format!("{} {word}", number * 100_000 + round * 10 + index)
            })
            .collect();
        let items: Vec<Value> = replies
            .iter()
            .map(|reply| {
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": reply}]})
            })
            .collect();
        let request = Request::post("/v1/reward")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(json!({ "items": items }).to_string()))
            .unwrap();
        let response = app.clone().oneshot(request).await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            tally.rejected += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        assert_eq!(response.status(), StatusCode::OK);
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        let items = answer["items"].as_array().unwrap();
        assert_eq!(items.len(), replies.len());
        for (item, reply) in items.iter().zip(&replies) {
            match (item["reward"].as_f64(), item["error"].as_str()) {
                (Some(reward), None) if reward == truth(reply) => tally.right += 1,
                (None, Some(cause)) if !cause.is_empty() => tally.errors += 1,
                _ => tally.wrong.push(format!("{reply}: {item}")),
            }
        }
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrong_reward_ever_comes_out() {
    let stand_in = stand_in();
    let settings = Settings {
        items: 4,
        queue: 24,
        batch: 16,
        deadline: Duration::from_millis(800),
        ..Settings::default()
    };
    let panels = (0..2).map(|_| panel(&stand_in.url)).collect();
    let service = Service::start(panels, BTreeMap::new(), settings, Arc::new(Metrics::default())).unwrap();
    let app = router(Arc::new(service));

    let until = Instant::now() + Duration::from_millis(3600);
    let clients: Vec<_> = (0..8)
        .map(|number| tokio::spawn(client(app.clone(), number, until)))
        .collect();
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(150)).await;
        stand_in.phase.fetch_add(1, Ordering::SeqCst);
    }
    let mut all = Tally::default();
    for client in clients {
        let tally = client.await.unwrap();
        all.right += tally.right;
        all.errors += tally.errors;
        all.rejected += tally.rejected;
        all.wrong.extend(tally.wrong);
    }
    stand_in.stop.store(true, Ordering::SeqCst);
    let (faults, kills) = (
        stand_in.faults.load(Ordering::SeqCst),
        stand_in.kills.load(Ordering::SeqCst),
    );
    println!(
        "{} right rewards, {} errors, {} requests turned away, {faults} faults, {kills} kills, {} wrong rewards",
        all.right,
        all.errors,
        all.rejected,
        all.wrong.len()
    );
    assert!(all.wrong.is_empty(), "{:#?}", all.wrong);
    assert!(
        all.right > 20 && all.errors > 20 && faults > 50 && kills > 1,
        "the test did not test"
    );
}
