//! `saferl serve` asked to stop while it answers.
#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn what_is_under_way_is_answered_before_the_server_ends() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_saferl"))
        .args(["serve", "tiny-qwen3", "--port", "0"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Kept until the end: a program whose words nobody can hear may fail of that.
    let mut told = BufReader::new(server.stderr.take().expect("piped")).lines();
    let address = told
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("http://")?.1.split(' ').next()?.to_owned()))
        .expect("it says where it serves");

    // Without the tiny model's end tokens it writes all that it may.
    let body = r#"{"messages": [{"role": "user", "content": "Hello"}], "n": 8, "max_tokens": 400, "stream": true,
                   "logit_bias": {"256": -100, "258": -100}}"#;
    let mut stream = TcpStream::connect(&address).expect("it listens");
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = BufReader::new(stream);
    let mut seen = String::new();
    while !seen.contains("data: ") {
        assert!(answer.read_line(&mut seen).unwrap() > 0, "{seen}");
    }
    let kill = Command::new("kill")
        .args(["-TERM", &server.id().to_string()])
        .status();
    assert!(kill.expect("kill is there").success());
    answer.read_to_string(&mut seen).unwrap();
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(seen.contains("data: [DONE]"), "the reply was cut off");
    assert!(server.wait().unwrap().success());
    assert!(TcpStream::connect(&address).is_err(), "it still listens");
}
