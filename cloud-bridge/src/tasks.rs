//! The tasks that make up a bridge. All of them go on until it stops: one that ends before, however, is a fault, and a
//! bridge that goes on without it would be half of one. Whoever runs the program starts it again.

use std::future::Future;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Tasks by name.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<&'static str>);

impl Tasks {
    /// Begins one.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until the bridge is to stop, or a task has ended before: gives that one.
    pub async fn watch(&mut self, stop: &CancellationToken) -> Option<String> {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            ended = self.0.join_next() => ended?,
        };
        // One that was quicker than this to hear that it is to stop has not failed.
        if stop.is_cancelled() && ended.is_ok() {
            return None;
        }
        Some(ended.map_or_else(|error| error.to_string(), str::to_owned))
    }

    /// Waits until all have ended.
    pub async fn finish(&mut self) {
        while self.0.join_next().await.is_some() {}
    }

    /// Ends those that have not ended.
    pub async fn shutdown(&mut self) {
        self.0.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_or_returns_before_it_is_told_to_ends_the_watch() {
        for panics in [true, false] {
            let stop = CancellationToken::new();
            let mut tasks = Tasks::default();
            tasks.spawn("steady", stop.clone().cancelled_owned());
            tasks.spawn("broken", async move { assert!(!panics, "a fault of its own") });
            let ended = tasks.watch(&stop).await.unwrap();
            assert!(ended.contains(if panics { "panicked" } else { "broken" }), "{ended}");
            stop.cancel();
            tasks.finish().await;
        }
    }

    #[tokio::test]
    async fn a_stop_is_no_fault() {
        let stop = CancellationToken::new();
        let mut tasks = Tasks::default();
        tasks.spawn("steady", stop.clone().cancelled_owned());
        stop.cancel();
        assert_eq!(tasks.watch(&stop).await, None);
        tasks.finish().await;
    }
}
