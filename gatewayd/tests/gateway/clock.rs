//! timedate1 on a private bus.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kinara_gatewayd::align::source::timedate;

struct Bus {
    child: Child,
    address: String,
}

impl Bus {
    fn start() -> Self {
        let mut child = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned() }
    }

    async fn connect(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.address.as_str()).unwrap().build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Timedate {
    synchronised: bool,
    slow: bool,
}

#[zbus::interface(name = "org.freedesktop.timedate1")]
impl Timedate {
    #[zbus(property, name = "NTPSynchronized")]
    async fn ntp_synchronized(&self) -> bool {
        if self.slow {
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        self.synchronised
    }
}

async fn serve(bus: &Bus, timedate: Timedate) -> zbus::Connection {
    zbus::connection::Builder::address(bus.address.as_str())
        .unwrap()
        .name("org.freedesktop.timedate1")
        .unwrap()
        .serve_at("/org/freedesktop/timedate1", timedate)
        .unwrap()
        .build()
        .await
        .unwrap()
}

const LIMIT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn timedate1_is_asked_whether_ntp_is_in_step() {
    let bus = Bus::start();
    let client = bus.connect().await;
    assert_eq!(timedate(&client, LIMIT).await, None, "nobody is there");
    let service = serve(&bus, Timedate { synchronised: false, slow: false }).await;
    assert_eq!(timedate(&client, LIMIT).await, Some(false));
    let object =
        service.object_server().interface::<_, Timedate>("/org/freedesktop/timedate1").await.unwrap();
    object.get_mut().await.synchronised = true;
    assert_eq!(timedate(&client, LIMIT).await, Some(true));
}

#[tokio::test]
async fn a_timedate1_that_hangs_is_not_waited_for() {
    let bus = Bus::start();
    let client = bus.connect().await;
    let _service = serve(&bus, Timedate { synchronised: true, slow: true }).await;
    let start = std::time::Instant::now();
    assert_eq!(timedate(&client, LIMIT).await, None);
    assert!(start.elapsed() < Duration::from_secs(5));
}
