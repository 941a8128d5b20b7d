//! A real Mosquitto on a free port.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Broker {
    child: Child,
    pub port: u16,
    configuration: PathBuf,
}

impl Broker {
    pub fn start(dir: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = dir.join("mosquitto.conf");
        std::fs::write(&configuration, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
        let child = spawn(&configuration, port);
        Self { child, port, configuration }
    }

    /// Lays this over its configuration: the last listener's, and then what is said about all. Counts from its next
    /// start on. Gives the port of one more listener, without the limits.
    pub fn limit(&self, listener: &str, all: &str) -> u16 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "{all}\nallow_anonymous true\nlistener {free} 127.0.0.1\nlistener {} 127.0.0.1\n{listener}\n",
            self.port
        );
        std::fs::write(&self.configuration, text).unwrap();
        free
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = spawn(&self.configuration, self.port);
    }
}

fn spawn(configuration: &Path, port: u16) -> Child {
    let program = if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" };
    let child = Command::new(program)
        .arg("-c")
        .arg(configuration)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto is installed");
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "mosquitto does not listen");
        std::thread::yield_now();
    }
    child
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
