//! RabbitBroker.
use super::*;
/// RabbitBroker.
pub struct RabbitBroker;
impl RabbitBroker {
    /// x
    pub fn start(_: String) -> Self {
        unimplemented!()
    }
}
#[async_trait]
#[allow(unused_variables)]
impl Broker for RabbitBroker {
    async fn publish(&self, doorbells: &[Doorbell]) -> Result<(), BrokerError> {
        unimplemented!()
    }
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, BrokerError> {
        unimplemented!()
    }
    async fn depth(&self, queue: Queue) -> Result<u64, BrokerError> {
        unimplemented!()
    }
    async fn check(&self) -> Result<(), BrokerError> {
        unimplemented!()
    }
    fn survives_restart(&self) -> bool {
        unimplemented!()
    }
    async fn close(&self) {
        unimplemented!()
    }
}
