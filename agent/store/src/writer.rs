//! The writer thread. It takes what waits, runs it inside one transaction with a savepoint each,
//! commits once, and only then replies (group commit).

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use crate::StoreError;

/// Tells the waiting caller how it ended; the argument is the commit's failure, if any.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// One write: runs inside the group's transaction and hands back what to do after the commit.
pub(crate) struct Job(Box<dyn FnOnce(&Transaction<'_>) -> Done + Send>);

/// How one job ended inside the transaction.
enum Done {
    /// Keep its writes and reply after the commit.
    Keep(Reply),
    /// Undo its writes; its error has been sent.
    Undo,
}

impl Job {
    pub(crate) fn new<T, E, F>(work: F) -> (Self, oneshot::Receiver<Result<T, E>>)
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = move |tx: &Transaction<'_>| match work(tx) {
            Ok(value) => Done::Keep(Box::new(move |committed: Result<(), StoreError>| {
                // A caller that went away does not matter: the write is durable all the same.
                let _ = sender.send(committed.map(|()| value).map_err(E::from));
            })),
            Err(error) => {
                let _ = sender.send(Err(error));
                Done::Undo
            }
        };
        (Self(Box::new(job)), receiver)
    }
}

#[derive(Clone)]
pub(crate) struct Writer(SyncSender<Job>);

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        queue_len_max: usize,
        group_len_max: usize,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(queue_len_max);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || run(connection, &receiver, group_len_max))?;
        Ok(Self(sender))
    }

    /// Hands the job back when the queue is full (`Some`) or the writer is gone (`None`).
    pub(crate) fn try_send(&self, job: Job) -> Result<(), Option<Job>> {
        self.0.try_send(job).map_err(|error| match error {
            TrySendError::Full(job) => Some(job),
            TrySendError::Disconnected(_) => None,
        })
    }

    pub(crate) fn send(&self, job: Job) -> Result<(), ()> {
        self.0.send(job).map_err(|_| ())
    }
}

fn run(mut connection: Connection, jobs: &Receiver<Job>, group_len_max: usize) {
    while let Ok(first) = jobs.recv() {
        let group = std::iter::once(first).chain(jobs.try_iter().take(group_len_max - 1));
        run_group(&mut connection, group);
    }
}

fn run_group(connection: &mut Connection, group: impl Iterator<Item = Job>) {
    let tx = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(error) => {
            // Dropping the jobs tells their callers that nothing was written.
            tracing::error!(%error, "the database accepts no transaction");
            return group.for_each(drop);
        }
    };
    let replies: Vec<Reply> = group.filter_map(|job| run_job(&tx, job)).collect();
    let mut committed = tx.commit();
    for reply in replies {
        // rusqlite's error cannot be cloned: the first caller gets it whole, the others its text.
        let outcome = match &mut committed {
            Ok(()) => Ok(()),
            Err(error) => {
                let copy = rusqlite::Error::ToSqlConversionFailure(error.to_string().into());
                Err(StoreError::Sqlite(std::mem::replace(error, copy)))
            }
        };
        reply(outcome);
    }
}

fn run_job(tx: &Transaction<'_>, job: Job) -> Option<Reply> {
    if let Err(error) = tx.execute_batch("SAVEPOINT job") {
        tracing::error!(%error, "the database accepts no savepoint");
        return None;
    }
    // A panic in one caller's closure must not stop the writer for all others.
    let done = std::panic::catch_unwind(AssertUnwindSafe(|| (job.0)(tx)));
    match done {
        Ok(Done::Keep(reply)) => match tx.execute_batch("RELEASE job") {
            Ok(()) => Some(reply),
            Err(error) => {
                reply(Err(error.into()));
                None
            }
        },
        Ok(Done::Undo) | Err(_) => {
            if let Err(error) = tx.execute_batch("ROLLBACK TO job; RELEASE job") {
                tracing::error!(%error, "a failed write could not be rolled back");
            }
            None
        }
    }
}
