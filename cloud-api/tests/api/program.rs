//! The program itself: its files, its health, its end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Cloud;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kinara-cloud-api");

fn http(address: &str, head: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

fn get(address: &str, path: &str) -> (u16, String) {
    http(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

#[tokio::test]
async fn the_program_says_where_it_listens_and_how_it_is_and_stops_when_told_to() {
    let mut cloud = Cloud::start().await;
    let addr_file = cloud.folder.path().join("api.addr");
    let config = cloud.folder.path().join("api.toml");
    let more = format!("addr_file = {addr_file:?}\n[limits]\nheader_timeout_s = 1\n");
    std::fs::write(&config, cloud.config_text(&more)).unwrap();
    let check = Command::new(PROGRAM).arg("--config").arg(&config).arg("check").output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let mut program = Command::new(PROGRAM)
        .arg("--config")
        .arg(&config)
        .env_remove("KINARA_CLOCK")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let address = loop {
        if let Ok(address) = std::fs::read_to_string(&addr_file) {
            break address.trim().to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let health = loop {
        let (status, health) = get(&address, "/healthz");
        assert_eq!(status, 200);
        let health: Value = serde_json::from_str(&health).unwrap();
        if health["notices"] == "up" {
            break health;
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(health, json!({ "status": "ok", "database": "up", "broker": "none", "notices": "up" }));
    let key = cloud.folder.path().join("jwt.key");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    let (status, figures) = get(&address, "/metrics");
    assert_eq!(status, 200);
    assert!(figures.contains("kinara_api_database_listening 1"), "{figures}");
    assert!(figures.contains("route=\"/healthz\""), "{figures}");

    // A client that does not finish its request's head is cut off.
    let began = Instant::now();
    http(&address, "GET /healthz HTTP/1.1\r\nHost");
    assert!(began.elapsed() < Duration::from_secs(10));

    cloud.postgres.kill();
    let (status, health) = get(&address, "/healthz");
    assert_eq!(status, 503);
    assert!(health.contains("\"database\":\"down\""), "{health}");
    let (status, problem) = http(
        &address,
        "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: 37\r\n\r\n{\"email\":\"a@b\",\"password\":\"password\"} ",
    );
    assert_eq!(status, 503, "{problem}");
    assert!(problem.contains("urn:kinara:problem:unavailable"), "{problem}");
    cloud.postgres.restart().unwrap();
    assert_eq!(get(&address, "/healthz").0, 200);

    let stop = Command::new("kill").arg("-TERM").arg(program.id().to_string()).status().unwrap();
    assert!(stop.success());
    let began = Instant::now();
    let status = loop {
        if let Some(status) = program.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "it does not stop");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success());
}

#[tokio::test]
async fn commands_print_one_line_of_json_and_a_new_member_can_log_in() {
    let cloud = Cloud::start().await;
    let config = cloud.folder.path().join("api.toml");
    std::fs::write(&config, cloud.config_text("")).unwrap();
    let run = |args: &[&str], input: &str| {
        let mut child = Command::new(PROGRAM)
            .arg("--config")
            .arg(&config)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let url = cloud.admin_url();
    let migrated = run(&["migrate", "--admin-url", &url], "");
    assert!(migrated.status.success(), "{migrated:?}");
    let member = ["admin", "--admin-url", &url, "member", "add", "--tenant", "here"];
    let member =
        [&member[..], &["--email", "New@Here.example", "--role", "viewer", "--password-stdin"]].concat();
    for changed in [true, false] {
        let output = run(&member, "a long password\n");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["changed"], line["id"].is_string()), (&json!(changed), true));
    }
    let refused = run(&member, "short\n");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("10 to 256"), "{refused:?}");
    let app = cloud.app();
    let router = kinara_cloud_api::routes::router(&app);
    let answer = crate::common::log_in(&router, "new@here.example", "a long password").await;
    assert_eq!(answer.status, 200, "{answer:?}");
}
