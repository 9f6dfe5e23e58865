//! One process on embedded parts.

use std::{path::Path, time::Duration};

use anyhow::Result;
use safelight_testing::{
    audit::{Audit, Database},
    process::free_port,
    server::Server,
    test_server::TestServer,
};
use tokio::task::block_in_place;

use crate::{ENV, Victim, random::Random};

/// `safelight serve`, on the same folder and port however often it is killed.
pub struct Alone {
    server: Server,
    site: TestServer,
}

impl Alone {
    /// Starts it.
    pub fn start(binary: &Path) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let site = TestServer::new(binary, &[ENV, &[("SAFELIGHT_LISTEN", &listen)]].concat())?;
        Ok(Self { server: site.start(&[])?.0, site })
    }
}

impl Victim for Alone {
    fn url(&self) -> String {
        self.server.url().to_owned()
    }

    fn database(&self) -> Database {
        self.site.database()
    }

    async fn harm(&mut self, random: &mut Random) -> Result<&'static str> {
        if random.index(3) == 0 {
            self.server.signal("STOP")?;
            let asleep = random.between(Duration::from_secs(1), Duration::from_secs(8));
            tokio::time::sleep(asleep).await;
            self.server.signal("CONT")?;
            return Ok("server frozen");
        }
        block_in_place(|| self.server.kill())?;
        self.server = self.site.start(&[])?.0;
        Ok("server killed")
    }

    fn audit(&self) -> Audit<'_> {
        self.site.audit()
    }
}
