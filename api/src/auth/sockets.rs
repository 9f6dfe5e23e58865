//! Which user and which program of this machine is at the other end of a connection, read from `/proc` (proc(5)):
//! `net/tcp` names the user and the inode of every socket, and the files of a process its sockets. Headers prove
//! nothing: a proxy sends what it likes, and what its own client likes.
//!
//! Where there is no such `/proc`, nobody is known.

use std::{
    collections::{HashSet, VecDeque},
    fs, iter,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use tokio::sync::Mutex;

use super::proc_net::{self, Table};

/// The user for files and sockets whose user has no number here (`user_namespaces(7)`), and for daemons without a user
/// of their own. It is nobody in particular.
const NOBODY: u32 = 65_534;

/// Programs that are remembered, to look at them first.
const MAX_RECENT: usize = 16;

/// Ancestors of a process that are looked at. A loop is impossible, but `/proc` changes meanwhile.
const MAX_ANCESTORS: usize = 32;

/// Why a client is not the user's own program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stranger {
    /// It runs as another user.
    OtherUser(u32),
    /// It runs as the same user, and accepts connections itself: it may pass on what others send.
    Server(String),
    /// It runs as the same user where this process cannot see it, such as in another container.
    Unseen,
    /// The system does not say who it is.
    Unknown,
}

/// Looks at the sockets of this machine. Connections that wait for a look share it.
#[derive(Default)]
pub struct Sockets(Arc<Mutex<Looker>>);

#[derive(Default)]
struct Looker {
    last: Option<Look>,
    recent: VecDeque<u32>,
}

/// The sockets and programs of this machine at one time.
struct Look {
    at: Instant,
    table: Table,
    seen: Vec<Program>,
    /// Processes that were not looked at yet.
    unseen: VecDeque<u32>,
}

/// A process whose files can be read.
struct Program {
    id: u32,
    sockets: HashSet<u64>,
}

impl Sockets {
    /// Whether the program that connected from `client` to `server`, accepted at a time before now, is the user's own.
    pub async fn check(
        &self,
        client: SocketAddr,
        server: SocketAddr,
        accepted: Instant,
    ) -> Result<(), Stranger> {
        let mut looker = self.0.clone().lock_owned().await;
        let checked = tokio::task::spawn_blocking(move || {
            let ends = (proc_net::canonical(client), proc_net::canonical(server));
            looker.check(ends, accepted)
        });
        checked.await.unwrap_or(Err(Stranger::Unknown))
    }
}

impl Looker {
    fn check(&mut self, ends: (SocketAddr, SocketAddr), accepted: Instant) -> Result<(), Stranger> {
        if self.last.as_ref().is_none_or(|look| look.at <= accepted) {
            self.last = Some(Look::now(&self.recent));
        }
        let look = self.last.as_mut().ok_or(Stranger::Unknown)?;
        let program = look.check(ends, rustix::process::geteuid().as_raw())?;
        if !self.recent.contains(&program) {
            self.recent.push_front(program);
            self.recent.truncate(MAX_RECENT);
        }
        Ok(())
    }
}

impl Look {
    fn now(recent: &VecDeque<u32>) -> Self {
        let at = Instant::now();
        let others = processes().filter(|id| !recent.contains(id));
        let unseen = recent.iter().copied().chain(others).collect();
        Self { at, table: Table::read(), seen: Vec::new(), unseen }
    }

    /// The process at the other end, if it is one of the `own` user.
    fn check(&mut self, ends: (SocketAddr, SocketAddr), own: u32) -> Result<u32, Stranger> {
        let owner = *self.table.owners.get(&ends).ok_or(Stranger::Unknown)?;
        if owner.user != own {
            return Err(Stranger::OtherUser(owner.user));
        }
        if own == NOBODY {
            return Err(Stranger::Unknown);
        }
        let id = self.find(owner.inode).ok_or(Stranger::Unseen)?;
        match self.server_of(id) {
            Some(server) => Err(Stranger::Server(name(server))),
            None => Ok(id),
        }
    }

    /// The process that has a socket.
    fn find(&mut self, inode: u64) -> Option<u32> {
        if let Some(known) = self.seen.iter().find(|one| one.sockets.contains(&inode)) {
            return Some(known.id);
        }
        while let Some(id) = self.unseen.pop_front() {
            let Some(sockets) = sockets(id) else { continue };
            let is_it = sockets.contains(&inode);
            self.seen.push(Program { id, sockets });
            if is_it {
                return Some(id);
            }
        }
        None
    }

    /// The server that a process works for: it, or an ancestor that started it for a connection, accepts connections
    /// from other machines; or it is one of several processes that share the accepting, as the workers of a server do.
    /// A shell has a session of its own, so the server through which its user has logged in does not count.
    fn server_of(&self, id: u32) -> Option<u32> {
        let session = Lineage::of(id)?.session;
        let of_session = |id: u32| Lineage::of(id).filter(|found| found.session == session);
        let listens = |id: &u32| {
            let own = sockets(*id).unwrap_or_default();
            own.iter().any(|inode| self.is_public(*inode))
        };
        let family = iter::successors(Some(id), |id| {
            of_session(*id).map(|found| found.parent).filter(|parent| of_session(*parent).is_some())
        });
        family.take(MAX_ANCESTORS).find(listens).or_else(|| self.shares_accepting(id).then_some(id))
    }

    fn shares_accepting(&self, id: u32) -> bool {
        let of_parent = Lineage::of(id).and_then(|found| sockets(found.parent)).unwrap_or_default();
        let own = sockets(id).unwrap_or_default();
        own.intersection(&of_parent).any(|inode| self.table.listening.contains_key(inode))
    }

    /// Whether a socket accepts connections from other machines.
    fn is_public(&self, inode: u64) -> bool {
        self.table.listening.get(&inode).is_some_and(|is_public| *is_public)
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The inodes of the sockets of a process; `None` if its files cannot be read.
fn sockets(id: u32) -> Option<HashSet<u64>> {
    let inode = |file: fs::DirEntry| {
        let target = fs::read_link(file.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Some(fs::read_dir(format!("/proc/{id}/fd")).ok()?.flatten().filter_map(inode).collect())
}

/// The name of a process, for people.
fn name(id: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
    name.trim().escape_debug().to_string()
}

/// What `/proc/[pid]/stat` says of where a process comes from.
struct Lineage {
    parent: u32,
    session: u32,
}

impl Lineage {
    fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // After the name in parentheses, which may have anything in it: state, parent, group, session.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
        let parent = fields.next()?.parse().ok()?;
        Some(Self { parent, session: fields.nth(1)?.parse().ok()? })
    }
}
