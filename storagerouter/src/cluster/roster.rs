//! What the registry says about the cluster's members, in its own keys:
//!
//! ```text
//! cluster/next              the next member's id, in decimal digits: ids are given out once
//! cluster/members/{id:016x} {"v":1,"name":"..."}
//! cluster/names/{name}      the id of who has this name, in decimal digits
//! ```

use super::membership::FOUNDER;
use common::kv::{Kv, KvAssert, KvOp, KvPair};
use common::{Error, ErrorKind, Result};
use kvstore::Client;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const NEXT: &str = "cluster/next";
const MEMBERS: &str = "cluster/members/";
/// Others may change the same keys at the same time.
const ATTEMPTS: u32 = 50;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    v: u32,
    name: String,
}

fn entry_key(member: u64) -> String {
    format!("{MEMBERS}{member:016x}")
}

fn name_key(name: &str) -> String {
    format!("cluster/names/{name}")
}

/// That the pair is still what was read.
fn unchanged(key: &str, pair: &Option<KvPair>) -> KvAssert {
    match pair {
        None => KvAssert::Absent(key.to_string()),
        Some(pair) => KvAssert::Revision(key.to_string(), pair.revision),
    }
}

fn number(pair: &KvPair) -> Result<u64> {
    let text = std::str::from_utf8(&pair.value).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::corrupt(format!("registry key '{}' is not a number", pair.key)))
}

fn entry(pair: &KvPair) -> Result<Entry> {
    let entry: Entry = serde_json::from_slice(&pair.value)
        .map_err(|e| Error::corrupt(format!("registry key '{}': {e}", pair.key)))?;
    match entry.v {
        1 => Ok(entry),
        v => Err(Error::new(
            ErrorKind::Unsupported,
            format!("registry key '{}' has version {v}, and this storage router knows 1", pair.key),
        )),
    }
}

fn busy() -> Error {
    Error::unavailable("others change the cluster's members all the time: try again")
}

/// An id that no member ever had.
pub async fn draw_id(client: &Client) -> Result<u64> {
    for _ in 0..ATTEMPTS {
        let next = client.get(NEXT).await?;
        let known = client.status().await?.configuration.ids().max().unwrap_or(FOUNDER);
        let id = next.as_ref().map_or(Ok(0), number)?.max(known + 1);
        let put = KvOp::Put(NEXT.to_string(), (id + 1).to_string().into());
        match client.txn(vec![unchanged(NEXT, &next)], vec![put]).await {
            Ok(_) => return Ok(id),
            Err(e) if e.kind == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
    Err(busy())
}

/// Notes that `member` is called `name`.
///
/// Errors: `Conflict` when somebody else is.
pub async fn enter(client: &Client, member: u64, name: &str) -> Result<()> {
    let (own, called) = (entry_key(member), name_key(name));
    for _ in 0..ATTEMPTS {
        let (known, holder) = (client.get(&own).await?, client.get(&called).await?);
        if let Some(holder) = &holder {
            let holder = number(holder)?;
            if holder != member {
                return Err(Error::conflict(format!(
                    "member {holder} of the cluster is called '{name}' already: choose another cluster.name, or remove that one \
                     with 'storagerouter cluster leave --member {holder}' if it is gone"
                )));
            }
        }
        let before = known.as_ref().map(entry).transpose()?.map(|entry| entry.name);
        if before.as_deref() == Some(name) && holder.is_some() {
            return Ok(());
        }
        let text = serde_json::to_string(&Entry { v: 1, name: name.to_string() })
            .map_err(|e| Error::internal(format!("an entry of the cluster: {e}")))?;
        let mut ops =
            vec![KvOp::Put(own.clone(), text.into()), KvOp::Put(called.clone(), member.to_string().into())];
        ops.extend(before.filter(|before| before != name).map(|before| KvOp::Delete(name_key(&before))));
        match client.txn(vec![unchanged(&own, &known), unchanged(&called, &holder)], ops).await {
            Ok(_) => return Ok(()),
            Err(e) if e.kind == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
    Err(busy())
}

/// Forgets a member that was removed.
pub async fn forget(client: &Client, member: u64) -> Result<()> {
    let own = entry_key(member);
    for _ in 0..ATTEMPTS {
        let Some(known) = client.get(&own).await? else { return Ok(()) };
        let called = name_key(&entry(&known)?.name);
        let holder = client.get(&called).await?;
        let mut ops = vec![KvOp::Delete(own.clone())];
        if holder.as_ref().map(number).transpose()? == Some(member) {
            ops.push(KvOp::Delete(called.clone()));
        }
        let asserts = vec![unchanged(&own, &Some(known)), unchanged(&called, &holder)];
        match client.txn(asserts, ops).await {
            Ok(_) => return Ok(()),
            Err(e) if e.kind == ErrorKind::Conflict => {}
            Err(e) => return Err(e),
        }
    }
    Err(busy())
}

/// The names of the members.
pub async fn names(client: &Client) -> Result<BTreeMap<u64, String>> {
    let mut names = BTreeMap::new();
    for pair in client.scan(MEMBERS).await? {
        let id = pair.key.strip_prefix(MEMBERS).and_then(|id| u64::from_str_radix(id, 16).ok());
        let id = id.ok_or_else(|| Error::corrupt(format!("registry key '{}' names no member", pair.key)))?;
        names.insert(id, entry(&pair)?.name);
    }
    Ok(names)
}
