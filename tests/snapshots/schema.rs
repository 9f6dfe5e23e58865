//! The schema of both databases after `safelight migrate`, and the checksums of the migrations.
//!
//! A released migration must never change, not even in a comment. Otherwise its checksum would not match, and
//! `safelight migrate` would fail on existing databases. A new migration adds a line at the end of each list.
//! Nodes of the previous release must work with the new schema.

use std::fmt::Write;

use anyhow::Result;
use safelight_testing::wait::LIMIT;
use safelight_testing::{
    postgres::Postgres,
    server::{run, safelight},
};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;

use super::assert_reviewed;
use crate::e2e::{binary, embedded_env};

/// The statements that created the schema, as SQLite stores them. Indexes without a statement belong to
/// constraints of their table.
const SQLITE: &[(&str, &str)] = &[
    (
        "schema",
        "select type || ' ' || name || ' on ' || tbl_name || char(10) || sql || ';' || char(10)
         from sqlite_schema
         where sql is not null and name not like 'sqlite_%' and tbl_name <> '_sqlx_migrations'
         order by type = 'trigger', tbl_name, type <> 'table', name",
    ),
    (
        "migrations",
        "select version || ' ' || description || ' ' || lower(hex(checksum))
         from _sqlx_migrations order by version",
    ),
];

/// The catalogs' own descriptions. `not null` is listed with the columns, because the catalog of constraints
/// has it only since PostgreSQL 18.
const POSTGRES: &[(&str, &str)] = &[
    (
        "relations",
        "select format('%s %s', relkind, relname)
                || coalesce(' with (' || array_to_string(reloptions, ', ') || ')', '')
         from pg_class
         where relnamespace = 'public'::regnamespace and relkind <> 'i'
           and relname <> '_sqlx_migrations'
         order by relname collate \"C\"",
    ),
    (
        "columns",
        "select format('%s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
                || case when a.attnotnull then ' not null' else '' end
                || case when a.attidentity <> '' then format(' identity %s', a.attidentity)
                   else '' end
                || case when a.attgenerated <> '' then ' generated' else '' end
                || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
         from pg_attribute a
         join pg_class c on c.oid = a.attrelid
         left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
           and a.attnum > 0 and not a.attisdropped and c.relname <> '_sqlx_migrations'
         order by c.relname collate \"C\", a.attnum",
    ),
    (
        "constraints",
        "select format('%s.%s %s', c.relname, n.conname, pg_get_constraintdef(n.oid))
         from pg_constraint n
         join pg_class c on c.oid = n.conrelid
         where n.connamespace = 'public'::regnamespace and n.contype <> 'n'
           and c.relname <> '_sqlx_migrations'
         order by c.relname collate \"C\", n.conname collate \"C\"",
    ),
    (
        "indexes",
        "select indexdef from pg_indexes
         where schemaname = 'public' and tablename <> '_sqlx_migrations'
         order by tablename collate \"C\", indexname collate \"C\"",
    ),
    (
        "triggers",
        "select pg_get_triggerdef(t.oid) from pg_trigger t
         join pg_class c on c.oid = t.tgrelid
         where not t.tgisinternal and c.relnamespace = 'public'::regnamespace
         order by c.relname collate \"C\", t.tgname collate \"C\"",
    ),
    (
        "functions",
        "select pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace
         order by proname collate \"C\", pg_get_function_identity_arguments(oid) collate \"C\"",
    ),
    (
        "migrations",
        "select version || ' ' || description || ' ' || encode(checksum, 'hex')
         from _sqlx_migrations order by version",
    ),
];

#[tokio::test]
async fn sqlite_schema() -> Result<()> {
    let data = TempDir::new()?;
    migrate(embedded_env(data.path())).await?;
    let url = format!("sqlite://{}", data.path().join("safelight.db").display());
    let mut database = SqliteConnection::connect(&url).await?;
    let mut text = String::new();
    for (section, sql) in SQLITE {
        let rows: Vec<String> = sqlx::query_scalar(*sql).fetch_all(&mut database).await?;
        write_section(&mut text, section, &rows)?;
    }
    assert_reviewed("schema_sqlite", &text);
    Ok(())
}

#[tokio::test]
async fn postgres_schema() -> Result<()> {
    let data = TempDir::new()?;
    let url = Postgres::fresh_database().await?;
    let mut env = embedded_env(data.path());
    env.push(("SAFELIGHT_DATABASE_URL".to_owned(), url.clone()));
    migrate(env).await?;
    let mut database = PgConnection::connect(&url).await?;
    let mut text = String::new();
    for (section, sql) in POSTGRES {
        let rows: Vec<String> = sqlx::query_scalar(*sql).fetch_all(&mut database).await?;
        write_section(&mut text, section, &rows)?;
    }
    assert_reviewed("schema_postgres", &text);
    Ok(())
}

async fn migrate(env: Vec<(String, String)>) -> Result<()> {
    let command = safelight(binary(), ["migrate"], &env);
    tokio::task::spawn_blocking(move || run(command, LIMIT)?.success()).await??;
    Ok(())
}

fn write_section(text: &mut String, section: &str, rows: &[String]) -> std::fmt::Result {
    writeln!(text, "-- {section}\n{}\n", rows.join("\n"))
}
