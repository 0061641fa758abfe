//! The embedded DynamoDB: `dynoxide` over a SQLite file, in process and on a loopback port.

use std::{fs, path::Path, sync::Mutex, time::Duration};

use dynoxide::Database;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

use super::args::CliError;
use nano_webhooks::clock::Clock;

/// How long stream records are kept once they were read: as long as DynamoDB keeps them.
const STREAM_RETENTION: Duration = Duration::from_hours(24);

/// The engine works without an index on its stream records: each write looks for the highest sequence number among all of
/// them. This index makes that a step.
const CREATE_SEQUENCE_INDEX: &str = "CREATE INDEX IF NOT EXISTS stream_records_by_sequence_number
    ON _stream_records (table_name, CAST(sequence_number AS INTEGER))";

/// A running engine.
pub struct EmbeddedDynamoDb {
    /// Beside the engine's own connection: to see its changes and to trim its stream.
    beside: Mutex<Connection>,
    database: Database,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), String>>,
    /// Holds the database of an engine that keeps nothing; dropped last.
    _temporary: Option<TempDir>,
}

impl EmbeddedDynamoDb {
    /// Starts an engine that keeps its data in `directory`, or, without one, for as long as it runs.
    pub fn start(listener: TcpListener, directory: Option<&Path>) -> Result<Self, CliError> {
        let temporary = match directory {
            Some(_) => None,
            None => Some(temporary_directory()?),
        };
        let home = directory
            .or(temporary.as_ref().map(TempDir::path))
            .expect("one of both is there");
        let path = home.join("dynamodb.sqlite");
        let unusable =
            |error: String| CliError(format!("{} cannot be used: {error}", path.display()));
        let database = Database::new(&path.to_string_lossy())
            .map_err(|error| unusable(format!("{error:?}")))?;
        if temporary.is_some() {
            // Nothing is to outlive the process, so there is nothing to wait on the disk for.
            database
                .enable_bulk_loading()
                .map_err(|error| unusable(format!("{error:?}")))?;
        }
        let beside = Connection::open(&path).map_err(|error| unusable(error.to_string()))?;
        beside
            .execute_batch(CREATE_SEQUENCE_INDEX)
            .map_err(|error| unusable(error.to_string()))?;
        if let Some(temporary) = &temporary {
            // Where files that are in use can be removed, they are then gone with the process, however it ends.
            let _ = fs::remove_dir_all(temporary.path());
        }
        let (stop, stopped) = oneshot::channel();
        let server = dynoxide::server::serve_with_shutdown(listener, database.clone(), async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(server);
        Ok(Self {
            beside: Mutex::new(beside),
            database,
            stop,
            server,
            _temporary: temporary,
        })
    }

    /// A number that changes with every write to the engine.
    pub fn version(&self) -> i64 {
        let beside = self
            .beside
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let version = beside
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut query| query.query_row([], |row| row.get(0)));
        version.unwrap_or_default()
    }

    /// Does what DynamoDB does by itself: deletes expired items, and stream records that are a day old. To be called when
    /// all stream records have been read.
    pub fn housekeep(&self, clock: &Clock) {
        let before = clock.now().as_unix_seconds()
            - i64::try_from(STREAM_RETENTION.as_secs()).unwrap_or(i64::MAX);
        let beside = self
            .beside
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = beside.execute(
            "DELETE FROM _stream_records WHERE created_at < ?1",
            [before],
        ) {
            tracing::warn!(%error, "old stream records were not deleted");
        }
        drop(beside);
        if let Err(error) = self.database.sweep_ttl() {
            tracing::warn!(?error, "expired items were not deleted");
        }
    }

    /// Stops serving and waits until requests that are being served have ended.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.server.await;
    }
}

/// A folder of this user's alone: payloads are in there.
fn temporary_directory() -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("nano-webhooks-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700));
    builder.tempdir()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_temporary_folder_is_its_owners_alone() {
        let folder = temporary_directory().unwrap();
        assert_eq!(
            fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}
