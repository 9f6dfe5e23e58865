//! The TCP sockets of this machine, as `/proc/net/tcp` and `/proc/net/tcp6` show them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The state of a listening socket.
const LISTENING: &str = "0A";

/// The user and the inode of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOwner {
    /// The number of the user who made it.
    pub user: u32,
    /// Its inode.
    pub inode: u64,
}

/// The sockets of this machine (or of this network namespace).
#[derive(Debug, Default)]
pub struct Table {
    /// Of connected sockets: by their own address and that of the other end.
    pub owners: HashMap<(SocketAddr, SocketAddr), SocketOwner>,
    /// Of listening sockets: by inode, whether other machines can reach them.
    pub listening: HashMap<u64, bool>,
    /// The users of listening sockets that loopback connections reach, by port.
    pub listeners: HashMap<u16, HashSet<u32>>,
}

impl Table {
    /// Reads it. A file that cannot be read has no sockets.
    pub fn read() -> Self {
        let mut table = Self::default();
        // A connection over IPv4 can belong to a socket for IPv6.
        for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
            table.add(&fs::read_to_string(file).unwrap_or_default());
        }
        table
    }

    fn add(&mut self, text: &str) {
        for line in text.lines() {
            let fields: Vec<_> = line.split_whitespace().take(10).collect();
            let [_, own, other, state, _, _, _, user, _, inode] = fields[..] else { continue };
            let (Some(own), Some(other)) = (address(own), address(other)) else { continue };
            let (Ok(user), Ok(inode)) = (user.parse(), inode.parse()) else { continue };
            if state == LISTENING {
                self.listening.insert(inode, !own.ip().is_loopback());
                if own.ip().is_loopback() || own.ip().is_unspecified() {
                    self.listeners.entry(own.port()).or_default().insert(user);
                }
            } else if inode != 0 {
                // Without an inode no process has it any more, and the user is not its user.
                self.owners.insert((own, other), SocketOwner { user, inode });
            }
        }
    }
}

/// Whether only programs of this process's user accept connections to this machine's loopback addresses at `port`. Not
/// where nobody does, and not where the system does not tell.
pub fn is_own_listener(port: u16) -> bool {
    let users = Table::read().listeners.remove(&port).unwrap_or_default();
    users == HashSet::from([rustix::process::geteuid().as_raw()])
}

/// An address in the form in which addresses are compared: no IPv4 address as one of IPv6, no zone.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An address such as `0100007F:1F90`: words in the byte order of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux prints it on a little-endian machine.
    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 12 1 0 100 0 0 10 0
   2: 0100007F:E1F4 0100007F:1F90 01 00000000:00000000 00:00000000 00000000    33        0 13 1 0 20 0 0 10 -1
   3: 0100007F:E1F5 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   4: 00000000000000000000000001000000:E1F6 00000000000000000000000001000000:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 14 1 0
   5: 0000000000000000FFFF00000100007F:E1F7 0000000000000000FFFF00000100007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 15 1 0
   nonsense";

    #[cfg(target_endian = "little")]
    #[test]
    fn sockets_are_found_by_both_ends() {
        let mut table = Table::default();
        table.add(TABLE);
        let owner = |own: &str, other: &str| {
            let ends = (own.parse().expect("an address"), other.parse().expect("an address"));
            table.owners.get(&ends).map(|owner| (owner.user, owner.inode))
        };
        assert_eq!(owner("127.0.0.1:57844", "127.0.0.1:8080"), Some((33, 13)));
        assert_eq!(owner("127.0.0.1:8080", "127.0.0.1:57844"), None, "the other end");
        assert_eq!(owner("127.0.0.1:57845", "127.0.0.1:8080"), None, "closed by its process");
        assert_eq!(owner("[::1]:57846", "[::1]:8080"), Some((1000, 14)));
        assert_eq!(owner("127.0.0.1:57847", "127.0.0.1:8080"), Some((1000, 15)), "IPv4 by IPv6");
        assert_eq!(table.listening, HashMap::from([(11, false), (12, true)]));
        let users = |port| table.listeners.get(&port).cloned().unwrap_or_default();
        assert_eq!(users(8080), HashSet::from([1000]));
        assert_eq!((users(80), users(443)), (HashSet::from([33]), HashSet::new()));
    }

    #[test]
    fn own_listener_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert!(is_own_listener(port));
        drop(listener);
        assert!(!is_own_listener(port), "nobody listens");
    }
}
