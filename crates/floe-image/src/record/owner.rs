//! Whose user namespace the tree was in, where that was an ordinary user's.

use super::UserNamespaceRecord;
use serde::{Deserialize, Serialize};

/// The user namespace that the tree's other namespaces belonged to, where that was not the host's first one. All other records
/// tell of users and groups by their numbers in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerRecord {
    /// Who made it, and which users and groups of the host it knows: by the host's numbers.
    pub namespace: UserNamespaceRecord,
}
