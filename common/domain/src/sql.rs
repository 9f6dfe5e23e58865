//! Ids and owners as SQL values: on every database, each is stored as the value that it wraps.

use sqlx_core::{
    database::Database,
    decode::Decode,
    encode::{Encode, IsNull},
    error::BoxDynError,
    types::Type,
};
use uuid::Uuid;

use crate::{ImageId, JobId, Owner, TaskId, WorkerId};

macro_rules! stored_as {
    ($inner:ty: $($name:ident),+) => {$(
        impl<DB: Database> Type<DB> for $name
        where
            $inner: Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <$inner>::type_info()
            }

            fn compatible(found: &DB::TypeInfo) -> bool {
                <$inner>::compatible(found)
            }
        }

        impl<'q, DB: Database> Encode<'q, DB> for $name
        where
            $inner: Encode<'q, DB>,
        {
            fn encode_by_ref(
                &self,
                buffer: &mut DB::ArgumentBuffer,
            ) -> Result<IsNull, BoxDynError> {
                self.0.encode_by_ref(buffer)
            }
        }

        impl<'r, DB: Database> Decode<'r, DB> for $name
        where
            $inner: Decode<'r, DB>,
        {
            fn decode(value: DB::ValueRef<'r>) -> Result<Self, BoxDynError> {
                <$inner>::decode(value).map(Self)
            }
        }
    )+};
}

stored_as!(Uuid: ImageId, JobId, TaskId, WorkerId);
stored_as!(String: Owner);
