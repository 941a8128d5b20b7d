//! Notices from the database that what boxes are told has changed, so that an introduction or a new PIN reaches them in
//! a second and not at the next look.
//!
//! A notice is a hint: while the connection for them is down nothing is lost but time, for everything is looked at again
//! every `jobs.config_s` seconds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::Notify;
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;

/// Between two attempts to connect, growing from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Listens until told to stop; tells `changed` of every notice.
pub async fn listen(database: kinara_store::Target, changed: Arc<Notify>, stop: CancellationToken) {
    let mut pause = PAUSE.0;
    loop {
        tokio::select! {
            error = one_connection(&database, &changed, &mut pause) => {
                tracing::warn!(error, retry_in = ?pause, "no notices from the database");
            }
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Ends with the connection, and says why.
async fn one_connection(database: &kinara_store::Target, changed: &Notify, pause: &mut Duration) -> String {
    let (client, mut connection) = match database.connect().await {
        Ok(both) => both,
        Err(error) => return kinara_store::explain(&error),
    };
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    let receive = async {
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(_)) => changed.notify_one(),
                Ok(_) => {}
                Err(error) => return kinara_store::explain(&error),
            }
        }
        "the connection was closed".to_owned()
    };
    let ask = async {
        if let Err(error) = client.batch_execute("LISTEN kinara_roster").await {
            return kinara_store::explain(&error);
        }
        *pause = PAUSE.0;
        // What changed while nobody listened.
        changed.notify_one();
        std::future::pending().await
    };
    tokio::select! {
        error = receive => error,
        error = ask => error,
    }
}
