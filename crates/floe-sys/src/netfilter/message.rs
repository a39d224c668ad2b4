//! Messages to nf_tables: transactions, their attributes, and the expressions of rules. linux/netfilter/nf_tables.h and
//! nfnetlink.h, netlink(7).

pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_NEWSET: u16 = 9;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
pub(super) const NFT_TABLE_F_OWNER: u32 = 2;
pub(super) const NFT_SET_TIMEOUT: u32 = 0x10;

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_ID: u16 = 10;
pub(super) const NFTA_SET_TIMEOUT: u16 = 11;
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_LOOKUP_SET: u16 = 1;
pub(super) const NFTA_LOOKUP_SREG: u16 = 2;
pub(super) const NFTA_LOOKUP_SET_ID: u16 = 4;
pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

pub(super) const NFT_META_MARK: u32 = 3;
pub(super) const NFT_META_NFPROTO: u32 = 15;
pub(super) const NFT_META_L4PROTO: u32 = 16;
pub(super) const NFT_CMP_EQ: u32 = 0;
pub(super) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
pub(super) const NFT_REG_VERDICT: u32 = 0;
pub(super) const NFT_REG_1: u32 = 1;
/// The first of sixteen registers of four bytes.
pub(super) const NFT_REG32_00: u32 = 8;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;

/// What must not be there yet.
pub(super) const NEW: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;

/// struct nlmsghdr and struct nfgenmsg.
pub(super) const NETLINK_HEADER: usize = 16;

/// Messages of one transaction.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Where the last message is.
    last: usize,
}

/// One of them, at its end.
pub(super) struct Message<'a>(&'a mut Vec<u8>);

impl Batch {
    pub(super) fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message<'_>)) {
        self.message_of(NFPROTO_INET, kind, flags, fill);
    }

    /// About packets of another family.
    pub(super) fn message_of(&mut self, family: u8, kind: u16, flags: u16, fill: impl FnOnce(&mut Message<'_>)) {
        if self.bytes.is_empty() {
            self.raw(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        }
        self.raw(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, family, 0, fill);
    }

    /// With an answer for the last message.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let flags = self.last + 6;
        let acknowledged = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | libc::NLM_F_ACK as u16;
        self.bytes[flags..flags + 2].copy_from_slice(&acknowledged.to_ne_bytes());
        self.raw(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        self.bytes
    }

    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, fill: impl FnOnce(&mut Message<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Message(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.last = start;
    }
}

impl<'a> Message<'a> {
    /// Attributes alone.
    pub(super) fn at_end_of(bytes: &'a mut Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Message<'_> {
    /// Attributes that are written already.
    pub(super) fn raw(&mut self, attributes: &[u8]) {
        self.0.extend(attributes);
    }

    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message<'_>)) {
        let start = self.0.len();
        self.attribute(kind | libc::NLA_F_NESTED as u16, &[]);
        fill(&mut Message(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Loads a part of a header.
    pub(super) fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) {
        self.expression("payload", |data| {
            data.number(NFTA_PAYLOAD_DREG, register);
            data.number(NFTA_PAYLOAD_BASE, base);
            data.number(NFTA_PAYLOAD_OFFSET, offset);
            data.number(NFTA_PAYLOAD_LEN, length);
        });
    }

    /// Goes on only where the first register holds this.
    pub(super) fn compare(&mut self, value: &[u8]) {
        self.compare_by(NFT_CMP_EQ, value);
    }

    /// By NFT_CMP_*.
    pub(super) fn compare_by(&mut self, operator: u32, value: &[u8]) {
        self.expression("cmp", |data| {
            data.number(NFTA_CMP_SREG, NFT_REG_1);
            data.number(NFTA_CMP_OP, operator);
            data.nest(NFTA_CMP_DATA, |nested| nested.attribute(NFTA_DATA_VALUE, value));
        });
    }

    /// Loads what is known of a packet, NFT_META_*, and goes on only where it is this.
    pub(super) fn compare_known(&mut self, key: u32, value: &[u8]) {
        self.load_known(key);
        self.compare(value);
    }

    /// Puts a value into a register.
    pub(super) fn put(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |data| {
            data.number(NFTA_IMMEDIATE_DREG, register);
            data.nest(NFTA_IMMEDIATE_DATA, |nested| nested.attribute(NFTA_DATA_VALUE, value));
        });
    }

    /// Loads that into the first register.
    pub(super) fn load_known(&mut self, key: u32) {
        self.expression("meta", |data| {
            data.number(NFTA_META_DREG, NFT_REG_1);
            data.number(NFTA_META_KEY, key);
        });
    }

    pub(super) fn drop(&mut self) {
        self.decide(NF_DROP);
    }

    pub(super) fn accept(&mut self) {
        self.decide(NF_ACCEPT);
    }

    fn decide(&mut self, code: u32) {
        self.expression("immediate", |data| {
            data.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nest(NFTA_IMMEDIATE_DATA, |nested| {
                nested.nest(NFTA_DATA_VERDICT, |verdict| verdict.number(NFTA_VERDICT_CODE, code));
            });
        });
    }

    pub(super) fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message<'_>)) {
        self.nest(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nest(NFTA_EXPR_DATA, fill);
        });
    }
}
