//! The words of `router`, and of the settings of a vDisk's DTL.

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

/// A setting of a vDisk's DTL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DtlSetting {
    /// `dtl.mode`.
    Mode(String),
    /// `dtl.peers`.
    Peers(u8),
    /// `dtl.needed`.
    Needed(String),
    /// `dtl.on_failure`.
    OnFailure(String),
}

/// Reads `dtl.KEY=VALUE`; what values there are is the router's to say.
pub fn dtl_setting(text: &str) -> Result<DtlSetting, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in dtl.mode=sync")?;
    let text = value.to_owned();
    Ok(match key {
        "dtl.mode" => DtlSetting::Mode(text),
        "dtl.peers" => DtlSetting::Peers(value.parse().map_err(|e| format!("dtl.peers '{value}': {e}"))?),
        "dtl.needed" => DtlSetting::Needed(text),
        "dtl.on_failure" => DtlSetting::OnFailure(text),
        _ => {
            return Err(format!(
                "there is no setting '{key}': dtl.mode, dtl.peers, dtl.needed, dtl.on_failure"
            ));
        }
    })
}
