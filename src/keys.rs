//! `safelight keys`: who may do what. These commands work on the database itself, because the first key
//! has to come from somewhere; whoever can run them has the configuration, and so everything.

use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use safelight_config::{Config, DatabaseUrl};
use safelight_domain::{
    ApiKey, Owner, Scopes, SigningKey,
    secrets::{self, ApiSecret},
};
use safelight_store::{AuditEntry, DynStore, NewApiKey, NewSigningKey, PageRequest};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    exit::Exit,
    process,
    say::{say, tell},
    startup,
    table::{self, text},
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
    /// Make a key; its secret is printed this once
    Create {
        /// Whose key it is
        #[arg(long, value_name = "NAME")]
        owner: Owner,
        /// What it may be used for: upload, read, admin, metrics; separated by commas
        #[arg(long, value_name = "SCOPES")]
        scopes: Scopes,
        /// How long it is good, such as 90d, 1s to 100y; for ever unless said
        #[arg(long, value_name = "TIME", value_parser = lifetime)]
        expires: Option<Duration>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List keys, newest first
    List {
        /// Only those of this owner
        #[arg(long, value_name = "NAME")]
        owner: Option<Owner>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// End keys at once
    Revoke {
        /// Ids or prefixes
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<String>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// Make a key for signed URLs, of which an owner may have two; its secret is printed this once
    CreateSigning {
        /// Whose images it opens
        #[arg(long, value_name = "NAME")]
        owner: Owner,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List keys for signed URLs, newest first
    ListSigning {
        /// Only those of this owner
        #[arg(long, value_name = "NAME")]
        owner: Option<Owner>,
        /// Print one JSON object per key
        #[arg(long)]
        json: bool,
    },
    /// End a key for signed URLs at once, and with it all URLs that it has signed
    RevokeSigning {
        /// Its id
        id: String,
    },
}

/// How long a key is to be good. What is out of bounds is an error: cut to them, it would be another time
/// than was asked for.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ApiKey::LIFETIME.contains(&lifetime) {
        return Ok(lifetime);
    }
    Err("a key is good for 1s to 100y, such as 90d; leave --expires out for ever".to_owned())
}

/// Does what was asked.
pub async fn run(config: Config, args: KeysArgs) -> Result<(), Exit> {
    process::prepare(&config, "keys")?;
    let may_be_first =
        matches!(args.command, KeysCommand::Create { .. } | KeysCommand::CreateSigning { .. });
    let store = open(&config, may_be_first).await?;
    match args.command {
        KeysCommand::Create { owner, scopes, expires, json } => {
            create(&store, owner, scopes, expires, json).await
        }
        KeysCommand::List { owner, json } => list(&store, owner.as_ref(), json).await,
        KeysCommand::Revoke { keys, json } => revoke(&store, &keys, json).await,
        KeysCommand::CreateSigning { owner, json } => create_signing(&store, owner, json).await,
        KeysCommand::ListSigning { owner, json } => {
            list_signing(&store, owner.as_ref(), json).await
        }
        KeysCommand::RevokeSigning { id } => revoke_signing(&store, &id).await,
    }
}

/// The database. That of a single process is made if it is not there, by a command that `may_be_first`; to
/// others a new one would only hide that they were given the wrong place.
async fn open(config: &Config, may_be_first: bool) -> Result<DynStore, Exit> {
    if let DatabaseUrl::Sqlite(path) = &config.database_url
        && !may_be_first
        && !path.exists()
    {
        return Err(Exit::failed(format!("there is no database at {}", path.display())).hint(
            "run this where the server runs, or name its database: --config, SAFELIGHT_DATA_DIR or \
             SAFELIGHT_DATABASE_URL",
        ));
    }
    let store = startup::connect(config).await?;
    let schema = match config.database_url {
        DatabaseUrl::Sqlite(_) => store.migrate().await,
        DatabaseUrl::Postgres(_) => store.check_schema().await,
    };
    schema.map_err(|error| startup::schema_problem(&error))?;
    Ok(store)
}

async fn create(
    store: &DynStore,
    owner: Owner,
    scopes: Scopes,
    lifetime: Option<Duration>,
    as_json: bool,
) -> Result<(), Exit> {
    let secret = ApiSecret::new().map_err(Exit::failed)?;
    let id = Uuid::now_v7();
    let prefix = secret.prefix().to_owned();
    let new = NewApiKey { id, prefix, owner, scopes, secret_sha256: secret.hash(), lifetime };
    store.create_api_key(&new).await.map_err(Exit::failed)?;
    note(store, &new.owner, "keys create", id.to_string()).await?;
    if as_json {
        let key = json!({ "id": id, "prefix": new.prefix, "secret": secret.reveal() });
        say!("{key}");
    } else {
        say!("{}", secret.reveal());
        tell!("key {} of {}: {}", new.prefix, new.owner, new.scopes);
        tell!("this is the only time that the secret is shown");
    }
    Ok(())
}

async fn list(store: &DynStore, owner: Option<&Owner>, as_json: bool) -> Result<(), Exit> {
    const PAGE: u32 = 500;
    let mut documents = Vec::new();
    let mut before = None;
    loop {
        let page = PageRequest { before, limit: PAGE };
        let keys = store.list_api_keys(owner, &page).await.map_err(Exit::failed)?;
        documents.extend(keys.iter().map(document));
        before = keys.last().map(|key| key.id).filter(|_| keys.len() == PAGE as usize);
        if before.is_none() {
            break;
        }
    }
    let header = ["PREFIX", "OWNER", "SCOPES", "STATE", "CREATED", "LAST USED", "ID"];
    table::print(&documents.into(), as_json, header, |key| {
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

async fn revoke(store: &DynStore, keys: &[String], as_json: bool) -> Result<(), Exit> {
    for key in keys {
        // Whoever has only the secret means the key that it is of.
        let secret = ApiSecret::parse(key);
        let key = secret.as_ref().map_or(key.as_str(), ApiSecret::prefix);
        let id = match Uuid::parse_str(key) {
            Ok(id) => Some(id),
            Err(_) => store.api_key(key).await.map_err(Exit::failed)?.map(|known| known.key.id),
        };
        let revoked = match id {
            Some(id) => store.revoke_api_key(id).await.map_err(Exit::failed)?,
            None => None,
        };
        let revoked = revoked.ok_or_else(|| {
            Exit::failed(format!("there is no key `{}`", key.escape_debug()))
                .hint("give its id or its prefix, as `safelight keys list` shows them")
        })?;
        note(store, &revoked.owner, "keys revoke", revoked.id.to_string()).await?;
        if as_json {
            say!("{}", document(&revoked));
        } else {
            tell!("revoked {} of {}", revoked.prefix, revoked.owner);
        }
    }
    Ok(())
}

async fn create_signing(store: &DynStore, owner: Owner, as_json: bool) -> Result<(), Exit> {
    let (id, secret) = secrets::new_signing_key().map_err(Exit::failed)?;
    let shown = secrets::encode(&secret);
    let new = NewSigningKey { id: id.clone(), owner: owner.clone(), secret };
    let created = store.create_signing_key(&new, LIVE_SIGNING_KEYS).await.map_err(Exit::failed)?;
    if !created {
        return Err(Exit::failed(format!("{owner} has {LIVE_SIGNING_KEYS} signing keys already"))
            .hint("revoke the older one: `safelight keys list-signing`, `… revoke-signing ID`"));
    }
    note(store, &owner, "keys create-signing", id.clone()).await?;
    if as_json {
        say!("{}", json!({ "id": id, "secret": shown }));
    } else {
        say!("{id} {shown}");
        tell!("the second is the secret in base64url; this is the only time that it is shown");
    }
    Ok(())
}

async fn list_signing(store: &DynStore, owner: Option<&Owner>, as_json: bool) -> Result<(), Exit> {
    let keys = store.list_signing_keys(owner).await.map_err(Exit::failed)?;
    let documents: Vec<Value> = keys.iter().map(signing_document).collect();
    table::print(&documents.into(), as_json, ["ID", "OWNER", "STATE", "CREATED"], |key| {
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

async fn revoke_signing(store: &DynStore, id: &str) -> Result<(), Exit> {
    let revoked = store.revoke_signing_key(id).await.map_err(Exit::failed)?;
    let revoked = revoked.ok_or_else(|| {
        Exit::failed(format!("there is no signing key `{}`", id.escape_debug()))
            .hint("`safelight keys list-signing` shows them")
    })?;
    note(store, &revoked.owner, "keys revoke-signing", revoked.id.clone()).await?;
    tell!("revoked {} of {}", revoked.id, revoked.owner);
    Ok(())
}

/// What was done on the database itself stands in the audit log as well.
async fn note(store: &DynStore, owner: &Owner, action: &str, target: String) -> Result<(), Exit> {
    let entry = AuditEntry {
        id: Uuid::now_v7(),
        at: SystemTime::now().into(),
        key: None,
        owner: owner.clone(),
        action: action.to_owned(),
        target,
    };
    store.audit(&entry).await.map_err(Exit::failed)
}
