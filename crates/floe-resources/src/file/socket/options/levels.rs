//! The table of options.

use std::ops::Range;

/// The options of a level. Those that are neither carried nor no settings, and differ, are refused.
pub(super) struct Level {
    pub level: i32,
    /// All there are so far.
    pub names: Range<i32>,
    pub carried: &'static [i32],
    /// What tells of the other end, of the kind of socket, or of what happened to it; what says the same as another option;
    /// what does something when it is asked for (SO_ERROR is taken away by that, SO_PEERPIDFD makes a descriptor).
    pub no_settings: &'static [i32],
}

const SOL_RAW: i32 = 255;
const SOL_ICMPV6: i32 = 58;
const SOL_NETLINK: i32 = 270;
const SOL_PACKET: i32 = 263;

pub(super) const LEVELS: [Level; 10] = [
    // asm-generic/socket.h: DEBUG, REUSEADDR, DONTROUTE, BROADCAST, SNDBUF, RCVBUF, KEEPALIVE, OOBINLINE, NO_CHECK, PRIORITY,
    // LINGER, REUSEPORT, PASSCRED, RCVLOWAT, RCVTIMEO, SNDTIMEO, BINDTODEVICE, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, TIMESTAMPING,
    // RXQ_OVFL, WIFI_STATUS, PEEK_OFF, NOFCS, LOCK_FILTER, SELECT_ERR_QUEUE, BUSY_POLL, MAX_PACING_RATE, ZEROCOPY, TXTIME,
    // TIMESTAMP_NEW, TIMESTAMPNS_NEW, TIMESTAMPING_NEW, PREFER_BUSY_POLL, BUSY_POLL_BUDGET, BUF_LOCK, RESERVE_MEM, TXREHASH, RCVMARK,
    // PASSPIDFD, RCVPRIORITY, PASSRIGHTS.
    Level {
        level: libc::SOL_SOCKET,
        names: 1..90,
        carried: &[
            1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 25, 29, 34, 35, 36, 37, 40, 41, 42, 43, 44, 45,
            46, 47, 60, 61, 63, 64, 65, 69, 70, 72, 73, 74, 75, 76, 82, 83,
        ],
        // TYPE, ERROR, BSDCOMPAT, PEERCRED, GET_FILTER (asked for apart), PEERNAME, ACCEPTCONN, PEERSEC, PROTOCOL, DOMAIN,
        // BPF_EXTENSIONS, INCOMING_CPU, MEMINFO, INCOMING_NAPI_ID, COOKIE, PEERGROUPS, BINDTOIFINDEX, RCVTIMEO_NEW and
        // SNDTIMEO_NEW (other names), NETNS_COOKIE, PEERPIDFD.
        no_settings: &[
            3, 4, 14, 17, 26, 28, 30, 31, 38, 39, 48, 49, 55, 56, 57, 59, 62, 66, 67, 71, 77,
        ],
    },
    // netinet/tcp.h: NODELAY, MAXSEG, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, WINDOW_CLAMP,
    // CONGESTION, THIN_*, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_CONNECT, FASTOPEN_KEY,
    // FASTOPEN_NO_COOKIE, INQ, TX_DELAY, RTO_MAX_MS, RTO_MIN_US, DELACK_MAX_US.
    Level {
        level: libc::IPPROTO_TCP,
        names: 1..50,
        carried: &[
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 17, 18, 23, 25, 27, 30, 33, 34, 36, 37, 44, 45, 46,
        ],
        // INFO, QUICKACK (the kernel changes it as it goes), REPAIR*, QUEUE_SEQ, TIMESTAMP, CC_INFO, SAVED_SYN,
        // ZEROCOPY_RECEIVE, IS_MPTCP.
        no_settings: &[11, 12, 19, 20, 21, 22, 24, 26, 28, 29, 35, 43],
    },
    // linux/in.h: TOS, TTL, HDRINCL, OPTIONS, ROUTER_ALERT, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL,
    // RECVTOS, FREEBIND, PASSSEC, TRANSPARENT, ORIGDSTADDR, MINTTL, NODEFRAG, CHECKSUM, BIND_ADDRESS_NO_PORT, RECVFRAGSIZE,
    // RECVERR_RFC4884, MULTICAST_TTL, _LOOP, _ALL, UNICAST_IF, LOCAL_PORT_RANGE.
    Level {
        level: libc::IPPROTO_IP,
        names: 1..53,
        carried: &[
            1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 33, 34, 49, 50, 51,
        ],
        // PKTOPTIONS, MTU, PROTOCOL (of others than raw sockets the port), MULTICAST_IF (told in part).
        no_settings: &[9, 14, 32, 52],
    },
    // linux/in6.h: 2292PKTINFO, 2292HOPOPTS, 2292DSTOPTS, 2292RTHDR, CHECKSUM, 2292HOPLIMIT, FLOWINFO, UNICAST_HOPS,
    // MULTICAST_IF, MULTICAST_HOPS, MULTICAST_LOOP, ROUTER_ALERT, MTU_DISCOVER, RECVERR, V6ONLY, MULTICAST_ALL,
    // ROUTER_ALERT_ISOLATE, RECVERR_RFC4884, FLOWINFO_SEND, HDRINCL, RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, HOPOPTS,
    // RTHDRDSTOPTS, RECVRTHDR, RTHDR, RECVDSTOPTS, DSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS, AUTOFLOWLABEL,
    // ADDR_PREFERENCES, MINHOPCOUNT, ORIGDSTADDR, TRANSPARENT, UNICAST_IF, RECVFRAGSIZE, FREEBIND.
    Level {
        level: libc::IPPROTO_IPV6,
        names: 1..81,
        carried: &[
            2, 3, 4, 5, 7, 8, 11, 16, 17, 18, 19, 22, 23, 25, 26, 29, 30, 31, 33, 36, 49, 51, 53, 54, 55, 56, 57, 58,
            59, 60, 62, 66, 67, 70, 72, 73, 74, 75, 76, 77, 78,
        ],
        // ADDRFORM, 2292PKTOPTIONS, MTU, PATHMTU.
        no_settings: &[1, 6, 24, 61],
    },
    // linux/udp.h: CORK, ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO.
    Level {
        level: libc::IPPROTO_UDP,
        names: 1..105,
        carried: &[1, 100, 101, 102, 103, 104],
        no_settings: &[],
    },
    // The same, and SEND_CSCOV and RECV_CSCOV.
    Level {
        level: libc::IPPROTO_UDPLITE,
        names: 1..105,
        carried: &[1, 10, 11, 100, 101, 102, 103, 104],
        no_settings: &[],
    },
    // linux/icmp.h: ICMP_FILTER; IPV6_CHECKSUM.
    Level {
        level: SOL_RAW,
        names: 1..8,
        carried: &[1, 7],
        no_settings: &[],
    },
    // linux/icmpv6.h: FILTER.
    Level {
        level: SOL_ICMPV6,
        names: 1..2,
        carried: &[1],
        no_settings: &[],
    },
    // linux/netlink.h: PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, LISTEN_ALL_NSID, CAP_ACK, EXT_ACK, GET_STRICT_CHK.
    Level {
        level: SOL_NETLINK,
        names: 1..20,
        carried: &[3, 4, 5, 8, 10, 11, 12],
        // LIST_MEMBERSHIPS.
        no_settings: &[9],
    },
    // linux/if_packet.h: COPY_THRESH, AUXDATA, ORIGDEV, VERSION, RESERVE, LOSS, VNET_HDR, TIMESTAMP, TX_HAS_OFF,
    // QDISC_BYPASS, FANOUT_DATA, IGNORE_OUTGOING, VNET_HDR_SZ.
    Level {
        level: SOL_PACKET,
        names: 1..30,
        carried: &[7, 8, 9, 10, 12, 14, 15, 17, 19, 20, 23, 24],
        // STATISTICS (begin anew when they are read), HDRLEN, FANOUT (asked for apart), ROLLOVER_STATS.
        no_settings: &[6, 11, 18, 21],
    },
];
