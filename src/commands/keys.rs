//! `safelight keys`: create, list and revoke keys. These commands open the database themselves, because the
//! first key cannot be created over HTTP; a user who can read the configuration has all rights anyway.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use safelight_config::{Config, DatabaseUrl};
use safelight_domain::{
    ApiKey, Owner, Scopes, SigningKey, new_id,
    secrets::{self, ApiSecret},
};
use safelight_store::{AuditEntry, DynStore, NewApiKey, NewSigningKey, PageRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    bootstrap::{runtime, services},
    error::CommandError,
    output::{output, print_list, status, text},
};

/// Keys for signed URLs that an owner may have at once: the one in use, and the next.
const LIVE_SIGNING_KEYS: u32 = 2;

/// Options of `safelight keys`.
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Create a key; its secret is printed only once
    Create {
        /// The owner of the key
        #[arg(long, value_name = "NAME")]
        owner: Owner,
        /// Scopes of the key, separated by commas: upload, read, admin, metrics
        #[arg(long, value_name = "SCOPES")]
        scopes: Scopes,
        /// How long it is valid, 1s to 100y, such as 90d [default: forever]
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<Duration>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List keys, newest first
    List {
        /// Only keys of this owner
        #[arg(long, value_name = "NAME")]
        owner: Option<Owner>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys immediately
    Revoke {
        /// Ids or prefixes
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// Create a key for signed URLs (at most two per owner); its secret is printed only once
    CreateSigning {
        /// The owner whose images it gives access to
        #[arg(long, value_name = "NAME")]
        owner: Owner,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List keys for signed URLs, newest first
    ListSigning {
        /// Only keys of this owner
        #[arg(long, value_name = "NAME")]
        owner: Option<Owner>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key for signed URLs immediately, and with it all URLs that it has signed
    RevokeSigning {
        /// The key's id
        id: String,
    },
}

/// How long a key is valid. A time out of bounds is an error; clamping it would silently change what was
/// asked for.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ApiKey::LIFETIME.contains(&lifetime) {
        return Ok(lifetime);
    }
    Err("a key is valid for 1s to 100y, such as 90d; leave out --expires for no limit".to_owned())
}

/// Runs the subcommand.
pub async fn run(config: Config, args: KeysArgs) -> Result<(), CommandError> {
    runtime::init(&config, "keys")?;
    let may_be_first =
        matches!(args.command, KeysCommand::Create { .. } | KeysCommand::CreateSigning { .. });
    let store = open(&config, may_be_first).await?;
    let result = run_on(&store, args.command).await;
    services::close_store(&store).await;
    result
}

async fn run_on(store: &DynStore, command: KeysCommand) -> Result<(), CommandError> {
    match command {
        KeysCommand::Create { owner, scopes, expires, json } => {
            create(store, owner, scopes, expires, json).await
        }
        KeysCommand::List { owner, json } => list(store, owner.as_ref(), json).await,
        KeysCommand::Revoke { keys, json } => revoke(store, &keys, json).await,
        KeysCommand::CreateSigning { owner, json } => create_signing(store, owner, json).await,
        KeysCommand::ListSigning { owner, json } => list_signing(store, owner.as_ref(), json).await,
        KeysCommand::RevokeSigning { id } => revoke_signing(store, &id).await,
    }
}

/// The database. A SQLite file that does not exist is created by commands that `may_be_first` alone: for the
/// others an empty database would hide that they look at the wrong place.
async fn open(config: &Config, may_be_first: bool) -> Result<DynStore, CommandError> {
    if let DatabaseUrl::Sqlite(path) = &config.database_url
        && !may_be_first
        && !path.exists()
    {
        return Err(CommandError::failed(format!("there is no database at {}", path.display())).hint(
            "run this where the server runs, or name its database: --config, SAFELIGHT_DATA_DIR or \
             SAFELIGHT_DATABASE_URL",
        ));
    }
    let store = services::connect_store(config).await?;
    let schema = match config.database_url {
        DatabaseUrl::Sqlite(_) => store.migrate().await,
        DatabaseUrl::Postgres(_) => store.check_schema().await,
    };
    match schema {
        Ok(()) => Ok(store),
        Err(error) => {
            services::close_store(&store).await;
            Err(services::schema_error(&error))
        }
    }
}

async fn create(
    store: &DynStore,
    owner: Owner,
    scopes: Scopes,
    lifetime: Option<Duration>,
    as_json: bool,
) -> Result<(), CommandError> {
    let secret = ApiSecret::new().map_err(CommandError::failed)?;
    let id = new_id();
    let prefix = secret.prefix().to_owned();
    let new = NewApiKey { id, prefix, owner, scopes, secret_sha256: secret.hash(), lifetime };
    store.create_api_key(&new).await.map_err(CommandError::failed)?;
    record_audit(store, &new.owner, "keys create", id.to_string()).await?;
    if as_json {
        let key = json!({ "id": id, "prefix": new.prefix, "secret": secret.reveal() });
        output!("{key}");
    } else {
        output!("{}", secret.reveal());
        status!("key {} of {}: {}", new.prefix, new.owner, new.scopes);
        status!("this is the only time that the secret is shown");
    }
    Ok(())
}

async fn list(store: &DynStore, owner: Option<&Owner>, as_json: bool) -> Result<(), CommandError> {
    const PAGE: u32 = 500;
    let mut documents = Vec::new();
    let mut before = None;
    loop {
        let page = PageRequest { before, limit: PAGE };
        let keys = store.list_api_keys(owner, &page).await.map_err(CommandError::failed)?;
        documents.extend(keys.iter().map(document));
        before = keys.last().map(|key| key.id).filter(|_| keys.len() == PAGE as usize);
        if before.is_none() {
            break;
        }
    }
    let header = ["PREFIX", "OWNER", "SCOPES", "STATE", "CREATED", "LAST USED", "ID"];
    print_list(&documents.into(), as_json, header, |key| {
        let scopes = key["scopes"].as_array().into_iter().flatten().map(text);
        [
            text(&key["prefix"]),
            text(&key["owner"]),
            scopes.collect::<Vec<_>>().join(","),
            text(&key["state"]),
            text(&key["created_at"]),
            text(&key["last_used_at"]),
            text(&key["id"]),
        ]
    });
    Ok(())
}

fn document(key: &ApiKey) -> Value {
    let state = match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if SystemTime::from(at) <= SystemTime::now() => "expired",
        (None, _) => "live",
    };
    json!({
        "id": key.id, "prefix": key.prefix, "owner": key.owner, "scopes": key.scopes,
        "state": state, "created_at": key.created_at, "expires_at": key.expires_at,
        "revoked_at": key.revoked_at, "last_used_at": key.last_used_at,
    })
}

async fn revoke(store: &DynStore, keys: &[String], as_json: bool) -> Result<(), CommandError> {
    for key in keys {
        // The secret names its key, too.
        let secret = ApiSecret::parse(key);
        let key = secret.as_ref().map_or(key.as_str(), ApiSecret::prefix);
        let id = match Uuid::parse_str(key) {
            Ok(id) => Some(id),
            Err(_) => {
                store.api_key(key).await.map_err(CommandError::failed)?.map(|known| known.key.id)
            }
        };
        let revoked = match id {
            Some(id) => store.revoke_api_key(id).await.map_err(CommandError::failed)?,
            None => None,
        };
        let revoked = revoked.ok_or_else(|| {
            CommandError::failed(format!("there is no key `{}`", key.escape_debug()))
                .hint("give its id or its prefix, as `safelight keys list` shows them")
        })?;
        record_audit(store, &revoked.owner, "keys revoke", revoked.id.to_string()).await?;
        if as_json {
            output!("{}", document(&revoked));
        } else {
            status!("revoked {} of {}", revoked.prefix, revoked.owner);
        }
    }
    Ok(())
}

async fn create_signing(store: &DynStore, owner: Owner, as_json: bool) -> Result<(), CommandError> {
    let (id, secret) = secrets::new_signing_key().map_err(CommandError::failed)?;
    let shown = secrets::encode(&secret);
    let new = NewSigningKey { id: id.clone(), owner: owner.clone(), secret };
    let created =
        store.create_signing_key(&new, LIVE_SIGNING_KEYS).await.map_err(CommandError::failed)?;
    if !created {
        return Err(CommandError::failed(format!(
            "{owner} has {LIVE_SIGNING_KEYS} signing keys already"
        ))
        .hint("revoke the older one: `safelight keys list-signing`, `… revoke-signing ID`"));
    }
    record_audit(store, &owner, "keys create-signing", id.clone()).await?;
    if as_json {
        output!("{}", json!({ "id": id, "secret": shown }));
    } else {
        output!("{id} {shown}");
        status!("the second is the secret in base64url; this is the only time that it is shown");
    }
    Ok(())
}

async fn list_signing(
    store: &DynStore,
    owner: Option<&Owner>,
    as_json: bool,
) -> Result<(), CommandError> {
    let keys = store.list_signing_keys(owner).await.map_err(CommandError::failed)?;
    let documents: Vec<Value> = keys.iter().map(signing_document).collect();
    print_list(&documents.into(), as_json, ["ID", "OWNER", "STATE", "CREATED"], |key| {
        ["id", "owner", "state", "created_at"].map(|name| text(&key[name]))
    });
    Ok(())
}

fn signing_document(key: &SigningKey) -> Value {
    let state = if key.revoked_at.is_some() { "revoked" } else { "live" };
    json!({
        "id": key.id, "owner": key.owner, "state": state, "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    })
}

async fn revoke_signing(store: &DynStore, id: &str) -> Result<(), CommandError> {
    let revoked = store.revoke_signing_key(id).await.map_err(CommandError::failed)?;
    let revoked = revoked.ok_or_else(|| {
        CommandError::failed(format!("there is no signing key `{}`", id.escape_debug()))
            .hint("`safelight keys list-signing` shows them")
    })?;
    record_audit(store, &revoked.owner, "keys revoke-signing", revoked.id.clone()).await?;
    status!("revoked {} of {}", revoked.id, revoked.owner);
    Ok(())
}

/// Records the action in the audit log, as for requests over HTTP.
async fn record_audit(
    store: &DynStore,
    owner: &Owner,
    action: &str,
    target: String,
) -> Result<(), CommandError> {
    let entry = AuditEntry {
        id: new_id(),
        at: SystemTime::now().into(),
        key: None,
        owner: owner.clone(),
        action: action.to_owned(),
        target,
    };
    store.audit(&entry).await.map_err(CommandError::failed)
}
