//! The embedded DynamoDB: `dynoxide` over a SQLite file, in this process and on a loopback port.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow};
use dynoxide::Database;
use nano_webhooks_core::timestamp::Timestamp;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

const DATABASE_FILE: &str = "dynamodb.sqlite";
/// How long stream records are kept, as in DynamoDB.
const STREAM_RETENTION: Duration = Duration::from_hours(24);

/// Every write of the engine looks for the highest sequence number among all stream records.
/// Without this index it scans them.
const CREATE_SEQUENCE_INDEX: &str = "CREATE INDEX IF NOT EXISTS stream_records_by_sequence_number
    ON _stream_records (table_name, CAST(sequence_number AS INTEGER))";

/// A running engine.
pub struct EmbeddedDynamoDb {
    /// A second connection to the engine's database: it sees changes and deletes old stream
    /// records.
    sqlite: Mutex<Connection>,
    database: Database,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<Result<(), String>>,
    /// The database of an engine without a directory. The last field, so that it is dropped last.
    _temporary: Option<TempDir>,
}

impl EmbeddedDynamoDb {
    /// Starts an engine with its data in `directory`. Without a directory the data ends with the
    /// engine.
    pub fn start(listener: TcpListener, directory: Option<&Path>) -> anyhow::Result<Self> {
        let Some(directory) = directory else {
            return Self::start_temporary(listener);
        };
        let path = directory.join(DATABASE_FILE);
        let (database, sqlite) =
            open_database(&path).with_context(|| format!("cannot use {}", path.display()))?;
        Ok(Self::serve(listener, database, sqlite, None))
    }

    fn start_temporary(listener: TcpListener) -> anyhow::Result<Self> {
        let temporary = create_temporary_directory().context("cannot create a temporary folder")?;
        let path = temporary.path().join(DATABASE_FILE);
        let (database, sqlite) =
            open_database(&path).with_context(|| format!("cannot use {}", path.display()))?;
        // The data need not survive the process, so no write has to wait for the disk.
        database
            .enable_bulk_loading()
            .map_err(|error| anyhow!("cannot use {}: {error:?}", path.display()))?;
        // Where open files can be removed, they vanish with the process, however it ends.
        let _ = fs::remove_dir_all(temporary.path());
        Ok(Self::serve(listener, database, sqlite, Some(temporary)))
    }

    fn serve(
        listener: TcpListener,
        database: Database,
        sqlite: Connection,
        temporary: Option<TempDir>,
    ) -> Self {
        let (shutdown, shutdown_requested) = oneshot::channel();
        let server = dynoxide::server::serve_with_shutdown(listener, database.clone(), async {
            let _ = shutdown_requested.await;
        });
        Self {
            sqlite: Mutex::new(sqlite),
            database,
            shutdown,
            server: tokio::spawn(server),
            _temporary: temporary,
        }
    }

    /// A number that changes with every write to the engine.
    pub fn data_version(&self) -> i64 {
        let sqlite = self.lock_sqlite();
        let version = sqlite
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut query| query.query_row([], |row| row.get(0)));
        version.unwrap_or_default()
    }

    /// Deletes expired items and stream records older than a day, which DynamoDB does by itself.
    ///
    /// Call it only when all stream records have been read.
    pub fn expire_old_data(&self, now: Timestamp) {
        let retention = i64::try_from(STREAM_RETENTION.as_secs()).unwrap_or(i64::MAX);
        let deleted = self.lock_sqlite().execute(
            "DELETE FROM _stream_records WHERE created_at < ?1",
            [now.as_unix_seconds() - retention],
        );
        if let Err(error) = deleted {
            tracing::warn!(%error, "Could not delete old stream records of the embedded DynamoDB");
        }
        if let Err(error) = self.database.sweep_ttl() {
            tracing::warn!(
                ?error,
                "Could not delete expired items of the embedded DynamoDB"
            );
        }
    }

    /// Stops the engine after the requests that it is serving.
    pub async fn stop(self) {
        let _ = self.shutdown.send(());
        let _ = self.server.await;
    }

    fn lock_sqlite(&self) -> MutexGuard<'_, Connection> {
        self.sqlite.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_database(path: &Path) -> anyhow::Result<(Database, Connection)> {
    let database = Database::new(&path.to_string_lossy()).map_err(|error| anyhow!("{error:?}"))?;
    let sqlite = Connection::open(path)?;
    sqlite.execute_batch(CREATE_SEQUENCE_INDEX)?;
    Ok((database, sqlite))
}

/// Only the owner may read the folder, because it has payloads.
fn create_temporary_directory() -> std::io::Result<TempDir> {
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
    fn only_owner_reads_temporary_directory() {
        let directory = create_temporary_directory().unwrap();
        let mode = fs::metadata(directory.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
