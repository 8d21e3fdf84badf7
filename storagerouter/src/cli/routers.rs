//! The words of `router`, and of what a vDisk is set to.

use super::ApiArgs;
use clap::{Args, Subcommand};

/// `router`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  storagerouter router list
  storagerouter router drain router-a           (before its machine is taken down)
  storagerouter router resume router-a
  storagerouter router remove router-b          (it will not come back)
  storagerouter vdisk move demo/disk1 --to router-c")]
pub struct Router {
    /// The API.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Which.
    #[command(subcommand)]
    pub action: RouterAction,
}

/// `router ...`.
#[derive(Debug, Subcommand)]
pub enum RouterAction {
    /// List all storage routers
    List,
    /// Show one
    Show {
        /// Its name
        name: String,
    },
    /// Let it give all its vDisks away and take none, also after a restart
    Drain {
        /// Its name
        name: String,
    },
    /// Let it take vDisks again
    Resume {
        /// Its name
        name: String,
    },
    /// Forget one that will not come back
    Remove {
        /// Its name
        name: String,
    },
}

/// A setting of a vDisk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// `dtl.mode`.
    Mode(String),
    /// `dtl.peers`.
    Peers(u8),
    /// `dtl.needed`.
    Needed(String),
    /// `dtl.on_failure`.
    OnFailure(String),
    /// `auto_migrate`.
    AutoMigrate(String),
}

/// Reads `KEY=VALUE`; what values there are is the router's to say.
pub fn setting(text: &str) -> Result<Setting, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in dtl.mode=sync")?;
    let text = value.to_owned();
    Ok(match key {
        "dtl.mode" => Setting::Mode(text),
        "dtl.peers" => Setting::Peers(value.parse().map_err(|e| format!("dtl.peers '{value}': {e}"))?),
        "dtl.needed" => Setting::Needed(text),
        "dtl.on_failure" => Setting::OnFailure(text),
        "auto_migrate" => Setting::AutoMigrate(text),
        _ => {
            return Err(format!(
                "there is no setting '{key}': dtl.mode, dtl.peers, dtl.needed, dtl.on_failure, auto_migrate"
            ));
        }
    })
}
