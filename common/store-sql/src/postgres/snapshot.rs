//! A view of the database as it is at one moment, which `pg_dump` can share.

use std::{io, str::FromStr, sync::Arc};

use futures::TryStreamExt;
use safelight_store::StoreError;
use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};

use super::{deadline::with_deadline, schema::WITHOUT_LIMITS, snapshot_rows};
use crate::snapshot::{NeededBytes, SnapshotFacts};

/// A transaction that sees the database as it is at one moment, and exports that view.
pub struct PostgresSnapshot {
    conn: PgConnection,
    name: String,
    server_version: u32,
}

impl PostgresSnapshot {
    /// Begins the transaction.
    pub async fn begin(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("safelight backup");
        with_deadline(async {
            let mut conn = options.connect().await?;
            // The transaction lasts, and nothing is said in it, for as long as `pg_dump` runs.
            sqlx::query(WITHOUT_LIMITS).execute(&mut conn).await?;
            let begin = "begin isolation level repeatable read read only";
            sqlx::query(begin).execute(&mut conn).await?;
            let query = sqlx::query_as(
                "select pg_export_snapshot(), current_setting('server_version_num')::int",
            );
            let (name, version): (String, i32) = query.fetch_one(&mut conn).await?;
            let server_version = u32::try_from(version / 10_000).unwrap_or(0);
            Ok(Self { conn, name, server_version })
        })
        .await
    }

    /// The name of the view, for `pg_dump --snapshot`. It is valid until [`PostgresSnapshot::end`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The major version of the server.
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// Calls `each` for the bytes that the images need, ordered by hash.
    pub async fn read(
        &mut self,
        mut each: impl FnMut(NeededBytes) -> io::Result<()>,
    ) -> Result<SnapshotFacts, StoreError> {
        let facts = snapshot_rows::facts(&mut self.conn).await?;
        let mut needed = snapshot_rows::needed(&mut self.conn);
        while let Some(bytes) = needed.try_next().await? {
            each(bytes).map_err(|error| StoreError::Unavailable(Arc::new(error)))?;
        }
        Ok(facts)
    }

    /// Ends the transaction.
    pub async fn end(self) -> Result<(), StoreError> {
        with_deadline(async { Ok(self.conn.close().await?) }).await
    }
}

/// Whether the database has any table.
pub async fn has_tables(url: &str) -> Result<bool, StoreError> {
    let options = PgConnectOptions::from_str(url)?.application_name("safelight restore");
    with_deadline(async {
        let mut conn = options.connect().await?;
        let found = sqlx::query_scalar(
            "select exists (select 1 from pg_catalog.pg_tables
                            where schemaname not in ('pg_catalog', 'information_schema'))",
        );
        let found = found.fetch_one(&mut conn).await?;
        conn.close().await?;
        Ok(found)
    })
    .await
}

/// The variables with which PostgreSQL's own programs reach the database that `url` names, password and all
/// (<https://www.postgresql.org/docs/current/libpq-envars.html>).
pub fn libpq_variables(url: &str) -> Result<Vec<(&'static str, String)>, StoreError> {
    let options = PgConnectOptions::from_str(url)?;
    let effective = options.to_url_lossy();
    let host = options.get_socket().map(|socket| socket.to_string_lossy().into_owned());
    let mut variables = vec![
        ("PGHOST", host.unwrap_or_else(|| options.get_host().to_owned())),
        ("PGPORT", options.get_port().to_string()),
        ("PGUSER", options.get_username().to_owned()),
    ];
    variables.extend(options.get_database().map(|name| ("PGDATABASE", name.to_owned())));
    if let Some(password) = effective.password() {
        let password = percent_encoding::percent_decode_str(password).decode_utf8_lossy();
        variables.push(("PGPASSWORD", password.into_owned()));
    }
    for (name, value) in effective.query_pairs() {
        let variable = match &*name {
            "sslmode" => "PGSSLMODE",
            "sslrootcert" => "PGSSLROOTCERT",
            "sslcert" => "PGSSLCERT",
            "sslkey" => "PGSSLKEY",
            _ => continue,
        };
        variables.push((variable, value.into_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_postgresql_get_every_part_of_the_url() {
        let url = "postgres://me:p%40ss@db.example:5433/pictures?sslmode=require";
        let found = libpq_variables(url).expect("a URL");
        let expected = [
            ("PGHOST", "db.example"),
            ("PGPORT", "5433"),
            ("PGUSER", "me"),
            ("PGDATABASE", "pictures"),
            ("PGPASSWORD", "p@ss"),
            ("PGSSLMODE", "require"),
        ];
        for (name, value) in expected {
            assert!(found.contains(&(name, value.to_owned())), "{name}: {found:?}");
        }
    }
}
