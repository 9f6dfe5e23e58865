//! A pooler such as pgbouncer that hands a server's connection to another client after each transaction. Names of
//! prepared statements then collide between clients, settings and locks of a session vanish, and a statement can
//! run in the place of another.

use safelight_store::StoreError;
use sqlx::{ConnectOptions, Executor, PgConnection, Row, postgres::PgConnectOptions};

use super::session::SESSION;

/// Which of two connections is asked next. Each is asked twice in a row, for a pooler that uses its connections
/// in turn: there a strict alternation of two clients would give each the same one every time.
const ORDER: [usize; 6] = [0, 0, 1, 0, 1, 1];
const ROUNDS: usize = 3;

/// Fails with [`StoreError::SharedConnections`] if the two connections that it opens are not two sessions of the
/// server: both are served by one process, or one of them by several.
pub async fn refuse_shared_connections(options: &PgConnectOptions) -> Result<(), StoreError> {
    let mut clients = [options.connect().await?, options.connect().await?];
    for client in &mut clients {
        // As in every session: there are poolers that stop sharing a connection that has settings.
        client.execute(SESSION).await?;
    }
    let mut processes = [None; 2];
    let mut is_shared = false;
    for client in ORDER.repeat(ROUNDS) {
        let process = server_process(&mut clients[client]).await?;
        is_shared |= *processes[client].get_or_insert(process) != process;
    }
    for client in clients {
        // What was learned counts, however they end.
        let _ = sqlx::Connection::close(client).await;
    }
    is_shared |= processes[0] == processes[1];
    if is_shared { Err(StoreError::SharedConnections) } else { Ok(()) }
}

/// The process that serves this connection. Without a prepared statement, whose name another client may use.
async fn server_process(conn: &mut PgConnection) -> Result<i32, StoreError> {
    let row = sqlx::raw_sql("select pg_backend_pid() as process").fetch_one(conn).await?;
    Ok(row.try_get("process")?)
}
