//! One process with SQLite, the in-process queue and a local folder.

use std::{path::Path, time::Duration};

use anyhow::Result;
use safelight_testing::{
    audit::{Audit, Database},
    process::free_port,
    server::Server,
    test_server::TestServer,
};
use tokio::task::block_in_place;

use crate::{Deployment, ENV, random::Random};

/// `safelight serve`, which keeps its folder and port when it is killed and restarted.
pub struct SingleProcess {
    server: Server,
    site: TestServer,
}

impl SingleProcess {
    pub fn start(binary: &Path) -> Result<Self> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let site = TestServer::new(binary, &[ENV, &[("SAFELIGHT_LISTEN", &listen)]].concat())?;
        Ok(Self { server: site.start(&[])?.0, site })
    }
}

impl Deployment for SingleProcess {
    fn url(&self) -> String {
        self.server.url().to_owned()
    }

    fn database(&self) -> Database {
        self.site.database()
    }

    async fn inject_fault(&mut self, random: &mut Random) -> Result<&'static str> {
        if random.index(3) == 0 {
            self.server.signal("STOP")?;
            let frozen = random.between(Duration::from_secs(1), Duration::from_secs(8));
            tokio::time::sleep(frozen).await;
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
