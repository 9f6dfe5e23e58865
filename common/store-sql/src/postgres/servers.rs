//! The servers of the database: one, or a primary and its standbys. All connections go to the one that accepts
//! writes; after a fail-over that is another one.

use std::{
    cmp::Reverse,
    str::FromStr,
    sync::{
        Arc, PoisonError, RwLock, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use safelight_store::StoreError;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    deadline::with_deadline,
    pooler,
    proof::{is_about_server, prove_commit},
    session::SESSION,
};

/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that was idle for longer is tested before it is used. A shorter time would cost every call a
/// round trip; a longer one, more failures after a restart of the database.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// How long a server may take to tell its state.
const STATE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time between two looks at the servers while calls fail.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// Time between two looks at several servers while all calls succeed: an old primary may answer them.
const PROMOTION_PERIOD: Duration = Duration::from_secs(5);

/// If the server works and no connection can be had for so long, the connections are dead. Under load one is
/// free much sooner; and longer than a call, so that calls that hang in a commit keep counting as connections.
const STUCK_AFTER: Duration = Duration::from_secs(20);

/// Clones share the connections.
#[derive(Clone)]
pub struct Servers(Arc<Inner>);

struct Inner {
    all: Vec<PgConnectOptions>,
    max_connections: u32,
    current: RwLock<Current>,
    /// Notified of failed calls.
    failed: Arc<Notify>,
    watcher: AbortHandle,
    /// The latest timeline that a server which accepts writes has told. One with an earlier timeline is an old
    /// primary, and is not used again, even if it is the only one that answers.
    latest: AtomicI64,
}

/// The server in use.
#[derive(Clone)]
struct Current {
    index: usize,
    pool: PgPool,
    /// Counts the pools.
    epoch: u64,
}

/// What a server says about itself.
struct State {
    is_standby: bool,
    accepts_writes: bool,
    /// Grows with every promotion.
    timeline: i64,
}

/// The one of `urls` that a store would use.
pub async fn server_in_use(urls: &[String]) -> Result<&String, StoreError> {
    match urls {
        [only] => Ok(only),
        urls => Ok(&urls[first(&options(urls)?).await?]),
    }
}

fn options(urls: &[String]) -> Result<Vec<PgConnectOptions>, StoreError> {
    let parse = |url: &String| {
        // Without the parameter that poolers reject; the server's default is exact, too.
        let options = PgConnectOptions::from_str(url)?.extra_float_digits(None);
        Ok(options.application_name("safelight"))
    };
    urls.iter().map(parse).collect()
}

impl Servers {
    /// Connects to the one of `urls` that accepts writes. If none does, to one that can be read: a delivery
    /// node needs no more.
    pub async fn connect(urls: &[String], max_connections: u32) -> Result<Self, StoreError> {
        let all = options(urls)?;
        let index = if all.len() == 1 { 0 } else { first(&all).await? };
        with_deadline(pooler::refuse_shared_connections(&all[index])).await?;
        let failed = Arc::<Notify>::default();
        let current =
            RwLock::new(Current { index, pool: pool(&all[index], max_connections), epoch: 0 });
        Ok(Self(Arc::new_cyclic(|inner| {
            let watcher = tokio::spawn(watch(inner.clone(), failed.clone())).abort_handle();
            Inner { all, max_connections, current, failed, watcher, latest: AtomicI64::new(0) }
        })))
    }

    /// The connections. Take them anew for each call.
    pub fn pool(&self) -> PgPool {
        self.0.current().pool
    }

    /// Changes when other connections are to be used.
    pub fn epoch(&self) -> u64 {
        self.0.current().epoch
    }

    /// A connection of its own to the server in use, and the server's index.
    pub async fn connect_alone(&self) -> Result<(usize, PgConnection), StoreError> {
        let index = self.index();
        let mut conn = self.0.all[index].connect().await?;
        conn.execute(SESSION).await?;
        Ok((index, conn))
    }

    /// The index of the server in use.
    pub fn index(&self) -> usize {
        self.0.current().index
    }

    /// Runs a call with a time limit. If the server is to blame for its failure, looks for a better one.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let result = with_deadline(call).await;
        if result.as_ref().is_err_and(is_about_server) {
            self.0.failed.notify_one();
        }
        result
    }
}

impl Inner {
    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connects to `index` from now on.
    fn switch(&self, index: usize) {
        let pool = pool(&self.all[index], self.max_connections);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Calls on old connections go on until they end; idle ones are closed here. Calls that still wait for an
        // old one get one to the new server.
        current.pool.set_connect_options(self.all[index].clone());
        *current = Current { index, pool, epoch: current.epoch + 1 };
    }

    /// The server to use from now on.
    async fn best(&self, current: usize) -> Option<usize> {
        let mut states = states(&self.all).await;
        let latest = latest(&states).max(self.latest.load(Ordering::Relaxed));
        self.latest.store(latest, Ordering::Relaxed);
        for state in states.iter_mut().flatten() {
            state.accepts_writes &= state.timeline >= latest;
        }
        choose(&states, current)
    }

    /// Notices that another server was promoted while this one still answers, as an old primary does that was
    /// frozen or cut off.
    async fn look_for_promoted(&self) {
        let current = self.current();
        if let Some(index) = self.best(current.index).await
            && index != current.index
        {
            let server = name(&self.all[index]);
            tracing::warn!(server, "another server of the database was promoted: using it");
            self.switch(index);
        }
    }

    /// Looks for the server that accepts writes, after a call has failed. Returns whether there is one.
    async fn look(&self) -> bool {
        let current = self.current();
        match self.best(current.index).await {
            None => {
                tracing::debug!("no server of the database accepts writes");
                return false;
            }
            Some(index) if index != current.index => {
                let server = name(&self.all[index]);
                tracing::warn!(server, "another server of the database accepts writes: using it");
                self.switch(index);
            }
            // The same name may lead to another server now.
            Some(index) if !has_good_connections(&current.pool).await => {
                let server = name(&self.all[index]);
                tracing::warn!(server, "old connections to the database are dead: replacing them");
                self.switch(index);
            }
            Some(_) => {}
        }
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn watch(servers: Weak<Inner>, failed: Arc<Notify>) {
    let mut is_found = true;
    loop {
        // Until there is one, without waiting for the next call to fail: that may take seconds.
        let has_failed = !is_found || timeout(PROMOTION_PERIOD, failed.notified()).await.is_ok();
        let Some(servers) = servers.upgrade() else { return };
        if has_failed {
            is_found = servers.look().await;
        } else if servers.all.len() > 1 {
            servers.look_for_promoted().await;
        }
        drop(servers);
        sleep(LOOK_PERIOD).await;
    }
}

fn pool(options: &PgConnectOptions, max_connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .after_connect(|conn, _| Box::pin(async move { conn.execute(SESSION).await.map(drop) }))
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED_FOR {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options.clone())
}

/// The server to start with.
async fn first(all: &[PgConnectOptions]) -> Result<usize, StoreError> {
    let states = states(all).await;
    if let Some(index) = choose(&states, 0) {
        return Ok(index);
    }
    let answers = |state: &Result<State, StoreError>| state.is_ok();
    let is_primary =
        |state: &Result<State, StoreError>| state.as_ref().is_ok_and(|state| !state.is_standby);
    let readable = states.iter().position(is_primary).or_else(|| states.iter().position(answers));
    if let Some(index) = readable {
        tracing::warn!(server = name(&all[index]), "no server of the database accepts writes");
        return Ok(index);
    }
    // There is at least one URL.
    states.into_iter().find_map(Result::err).map_or(Ok(0), Err)
}

/// The latest timeline of those that accept writes; 0 if none tells it.
fn latest(states: &[Result<State, StoreError>]) -> i64 {
    let writable = states.iter().flatten().filter(|state| state.accepts_writes);
    writable.map(|state| state.timeline).max().unwrap_or(0)
}

/// Of the servers that accept writes the one that was promoted last: an old primary that comes back may not
/// know that there is a new one. Otherwise the current one, otherwise the first.
fn choose(states: &[Result<State, StoreError>], current: usize) -> Option<usize> {
    let states = states.iter().enumerate();
    let writable = states.filter_map(|(index, state)| {
        state.as_ref().ok().filter(|state| state.accepts_writes).map(|state| (index, state))
    });
    writable
        .max_by_key(|(index, state)| (state.timeline, *index == current, Reverse(*index)))
        .map(|(index, _)| index)
}

async fn states(all: &[PgConnectOptions]) -> Vec<Result<State, StoreError>> {
    join_all(all.iter().map(|options| async move {
        let state = timeout(STATE_TIMEOUT, state(options)).await;
        state.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
    }))
    .await
}

/// Fails if the server does not answer.
async fn state(options: &PgConnectOptions) -> Result<State, StoreError> {
    let mut conn = options.connect().await?;
    conn.execute(SESSION).await?;
    let is_standby = is_standby(&mut conn).await?;
    let accepts_writes = !is_standby && prove_commit(&mut conn).await.is_ok();
    // A server that does not tell its timeline counts as the oldest.
    let timeline = if accepts_writes { timeline(&mut conn).await.unwrap_or(0) } else { 0 };
    // The answer counts, however the connection ends.
    let _ = conn.close().await;
    Ok(State { is_standby, accepts_writes, timeline })
}

async fn is_standby(conn: &mut PgConnection) -> Result<bool, StoreError> {
    let row = sqlx::raw_sql("select pg_is_in_recovery() as standby").fetch_one(conn).await?;
    Ok(row.try_get("standby")?)
}

async fn timeline(conn: &mut PgConnection) -> Result<i64, StoreError> {
    // The first eight digits of the name of a WAL file.
    let row = sqlx::raw_sql(
        "select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint as timeline",
    )
    .fetch_one(conn)
    .await?;
    Ok(row.try_get("timeline")?)
}

/// Whether the pool has connections on which a transaction can be committed. Waits for a free one.
async fn has_good_connections(pool: &PgPool) -> bool {
    let give_up_at = Instant::now() + STUCK_AFTER;
    loop {
        match timeout(STATE_TIMEOUT, pool.acquire()).await {
            Ok(Ok(mut conn)) => {
                let proof = timeout(STATE_TIMEOUT, prove_commit(&mut conn)).await;
                return matches!(proof, Ok(Ok(())));
            }
            _ if Instant::now() >= give_up_at => return false,
            // Some errors come at once.
            _ => sleep(LOOK_PERIOD).await,
        }
    }
}

/// The server's name for the log: without user and password.
fn name(options: &PgConnectOptions) -> String {
    format!("{}:{}", options.get_host(), options.get_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of servers that accept writes or not, on a timeline.
    fn states(servers: &[(bool, i64)]) -> Vec<Result<State, StoreError>> {
        let state = |&(accepts_writes, timeline): &(bool, i64)| {
            Ok(State { is_standby: !accepts_writes, accepts_writes, timeline })
        };
        servers.iter().map(state).collect()
    }

    #[test]
    fn latest_primary_is_chosen() {
        assert_eq!(choose(&states(&[(true, 1)]), 0), Some(0));
        assert_eq!(choose(&states(&[(false, 0), (true, 2)]), 0), Some(1));
        // An old primary that came back.
        assert_eq!(choose(&states(&[(true, 1), (true, 2)]), 0), Some(1));
        // Nothing tells them apart.
        assert_eq!(choose(&states(&[(true, 0), (true, 0)]), 1), Some(1));
        assert_eq!(choose(&states(&[(false, 0), (true, 0), (true, 0)]), 0), Some(1));
        assert_eq!(choose(&states(&[(false, 0), (false, 0)]), 0), None);
        let gone = Err(sqlx::Error::PoolTimedOut.into());
        assert_eq!(choose(&[gone], 0), None);
    }
}
