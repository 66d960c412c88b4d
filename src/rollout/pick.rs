//! Which side a connection or a client belongs to.
//!
//! A client's place among 10,000 is a hash of its key and of the rollout, and it is the candidate's if the place is below
//! the share. So a growing share never throws anybody out, every build agrees on who is where, and each rollout begins
//! with other clients.

// Addresses are data; what can be done with them is in `std::net`.
use core::net::IpAddr;

use super::plan::{By, Network, Rollout};
use super::share::Share;
use super::side::Side;

/// Says which side serves whom.
#[derive(Clone, Debug)]
pub(crate) struct Pick {
    rollout: u64,
    by: By,
    share: Share,
    include: Vec<Network>,
    exclude: Vec<Network>,
}

/// Who a client is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client<'a> {
    /// The peer's address, or the one that a trusted proxy reports. An IPv6 client is its /64.
    Address(IpAddr),
    /// What the application knows it by.
    Named(&'a str),
}

impl Pick {
    /// The candidate has no share yet. `rollout` is any number that other rollouts of the service do not have.
    pub(crate) fn new(rollout: u64, plan: &Rollout) -> Self {
        Self {
            rollout,
            by: plan.by,
            share: Share::NONE,
            include: plan.include.clone(),
            exclude: plan.exclude.clone(),
        }
    }

    /// Without a share the candidate gets nobody, included clients neither: there is none any more, or none yet.
    pub(crate) fn set_share(&mut self, share: Share) {
        self.share = share;
    }

    /// Which side gets a new connection, by 64 bits of a coin where there is no client to go by: a peer without an address,
    /// as of a Unix socket, is nobody. Requests are split elsewhere; their connections are all stable's.
    pub(crate) fn connection(&self, peer: Option<IpAddr>, coin: u64) -> Side {
        match (self.by, peer.map(Client::Address)) {
            (By::Request, _) => Side::Stable,
            (By::Client, Some(client)) => self.client(client),
            (By::Connection | By::Client, client) => {
                self.single(client.unwrap_or(Client::Named("")), coin)
            }
        }
    }

    /// Whether the share is one of requests.
    pub(crate) fn is_of_requests(&self) -> bool {
        self.by == By::Request
    }

    /// Which side gets a request. The lists go by its peer, and the share by whom the request is of: `None` is nobody, and a
    /// coin of 64 bits decides.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "only HTTP has requests")
    )]
    pub(crate) fn request(
        &self,
        peer: Option<IpAddr>,
        client: Option<Client<'_>>,
        coin: u64,
    ) -> Side {
        let place = place(client.map_or(coin, |client| client.hash(self.rollout)));
        self.decide(peer.map_or(Client::Named(""), Client::Address), place)
    }

    /// Always the same side for a client, until the share shrinks below its place.
    pub(crate) fn client(&self, client: Client<'_>) -> Side {
        self.decide(client, place(client.hash(self.rollout)))
    }

    /// Each connection (or request) by itself, by 64 bits of a coin.
    pub(crate) fn single(&self, client: Client<'_>, coin: u64) -> Side {
        self.decide(client, place(coin))
    }

    fn decide(&self, client: Client<'_>, place: u16) -> Side {
        if self.share == Share::NONE || client.is_in(&self.exclude) {
            return Side::Stable;
        }
        if client.is_in(&self.include) || place < self.share.parts() {
            return Side::Candidate;
        }
        Side::Stable
    }
}

impl Client<'_> {
    /// SipHash-2-4 under the key (`rollout`, 0) of one byte that says what follows, and the octets or the name: in every
    /// build the same, for generations of different builds must agree.
    pub(crate) fn hash(&self, rollout: u64) -> u64 {
        match self {
            Self::Address(address) => match address.to_canonical() {
                IpAddr::V4(address) => siphash(rollout, &[&[4], &address.octets()]),
                IpAddr::V6(address) => siphash(rollout, &[&[6], &address.octets()[..8]]),
            },
            Self::Named(name) => siphash(rollout, &[&[0], name.as_bytes()]),
        }
    }

    fn is_in(&self, networks: &[Network]) -> bool {
        match self {
            Self::Address(address) => networks.iter().any(|network| network.contains(*address)),
            Self::Named(_) => false,
        }
    }
}

/// 2⁶⁴ is no multiple of 10,000; the error is below 10⁻¹⁵.
fn place(hash: u64) -> u16 {
    u16::try_from(hash % u64::from(Share::FULL.parts())).unwrap_or(u16::MAX)
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) under the key (`key`, 0), over the parts one after the other.
fn siphash(key: u64, parts: &[&[u8]]) -> u64 {
    siphash_keyed([key, 0], parts.iter().copied().flatten().copied())
}

fn siphash_keyed(key: [u64; 2], bytes: impl Iterator<Item = u8>) -> u64 {
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let (mut word, mut length) = (0, 0_u64);
    for byte in bytes {
        word |= u64::from(byte) << (8 * (length % 8));
        length += 1;
        if length % 8 == 0 {
            compress(&mut state, word);
            word = 0;
        }
    }
    compress(&mut state, word | length << 56);
    state[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut state);
    }
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

fn compress(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    round(state);
    round(state);
    state[0] ^= word;
}

fn round([v0, v1, v2, v3]: &mut [u64; 4]) {
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENTS: u32 = 50_000;
    const SHARES: [u8; 6] = [1, 5, 10, 25, 50, 100];

    fn pick(rollout: u64, percent: u8) -> Pick {
        let mut pick = Pick::new(rollout, &Rollout::canary([1]));
        pick.set_share(Share::percent(percent));
        pick
    }

    fn v4(number: u32) -> Client<'static> {
        Client::Address(IpAddr::from(number.to_be_bytes()))
    }

    fn address(text: &str) -> Client<'static> {
        Client::Address(text.parse().unwrap())
    }

    fn candidates(pick: &Pick) -> Vec<u32> {
        (0..CLIENTS)
            .filter(|number| pick.client(v4(0x0a00_0000 + number)) == Side::Candidate)
            .collect()
    }

    /// Four standard deviations of so many coins.
    fn error_max(share: f64) -> f64 {
        4.0 * (share * (1.0 - share) / f64::from(CLIENTS)).sqrt()
    }

    #[test]
    fn the_hash_is_siphash_2_4() {
        // The reference implementation's first vectors: key 00 01 .. 0f, input of the first n of 00 01 02 ...
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        for (length, expected) in [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ] {
            assert_eq!(siphash_keyed(key, 0..length), expected, "{length}");
        }
    }

    #[test]
    fn the_share_of_50_000_clients_is_within_binomial_error() {
        for percent in SHARES {
            let share = f64::from(percent) / 100.0;
            for rollout in 0..5 {
                let observed =
                    candidates(&pick(rollout, percent)).len() as f64 / f64::from(CLIENTS);
                let error = (observed - share).abs();
                assert!(error <= error_max(share), "{percent} %: {observed}");
            }
        }
    }

    #[test]
    fn nobody_is_thrown_out_while_the_share_grows() {
        let mut before: Vec<u32> = Vec::new();
        for percent in 0..=100 {
            let now = candidates(&pick(7, percent));
            assert!(
                before
                    .iter()
                    .all(|client| now.binary_search(client).is_ok()),
                "{percent} %"
            );
            before = now;
        }
        assert_eq!(before.len(), CLIENTS as usize);
    }

    #[test]
    fn another_rollout_begins_with_other_clients() {
        let (one, other) = (candidates(&pick(1, 5)), candidates(&pick(2, 5)));
        let both = one.iter().filter(|client| other.contains(client)).count();
        // Independent: 5 % of those 5 %.
        assert!(both < one.len() / 10, "{both} of {}", one.len());
    }

    #[test]
    fn an_ipv6_client_is_its_64_and_a_mapped_ipv4_address_is_itself() {
        let hash = |text: &str| address(text).hash(1);
        assert_eq!(hash("2001:db8::1"), hash("2001:db8::ffff:1"));
        assert_ne!(hash("2001:db8::1"), hash("2001:db8:0:1::1"));
        assert_eq!(hash("::ffff:192.0.2.1"), hash("192.0.2.1"));
        assert_ne!(hash("192.0.2.1"), hash("192.0.2.2"));
    }

    #[test]
    fn a_name_is_a_key_of_its_own() {
        let pick = pick(1, 50);
        let sides = ["ann", "bob", "cid", "dan", "eve", "flo", "gus", "hal"]
            .map(|name| pick.client(Client::Named(name)));
        assert!(sides.contains(&Side::Stable) && sides.contains(&Side::Candidate));
        assert_ne!(
            Client::Named("\n\0\0\u{1}").hash(1),
            address("10.0.0.1").hash(1)
        );
    }

    #[test]
    fn lists_come_before_the_share_and_exclusion_before_inclusion() {
        let plan = Rollout::canary([1])
            .include("192.0.2.0/24".parse().unwrap())
            .exclude("192.0.2.7/32".parse().unwrap());
        let mut pick = Pick::new(1, &plan);
        assert_eq!(pick.client(address("192.0.2.1")), Side::Stable);
        pick.set_share(Share::per_10000(1));
        for last in 0..=255 {
            let client = Client::Address(IpAddr::from([192, 0, 2, last]));
            let expected = if last == 7 {
                Side::Stable
            } else {
                Side::Candidate
            };
            assert_eq!(pick.client(client), expected);
            assert_eq!(pick.single(client, u64::MAX), expected);
        }
        pick.set_share(Share::FULL);
        assert_eq!(pick.client(address("192.0.2.7")), Side::Stable);
    }

    #[test]
    fn connections_go_by_what_the_share_is_a_share_of() {
        let peer = Some(IpAddr::from([192, 0, 2, 1]));
        let half = |by| {
            let mut pick = Pick::new(1, &Rollout::canary([1]).by(by));
            pick.set_share(Share::percent(50));
            pick
        };
        let sides = |pick: &Pick, peer| [0, 9_999].map(|coin| pick.connection(peer, coin));
        let by_coin = [Side::Candidate, Side::Stable];
        assert_eq!(sides(&half(By::Connection), peer), by_coin);
        assert_eq!(sides(&half(By::Request), peer), [Side::Stable; 2]);
        let by_client = half(By::Client);
        let client = by_client.client(address("192.0.2.1"));
        assert_eq!(sides(&by_client, peer), [client; 2]);
        assert_eq!(sides(&by_client, None), by_coin);
    }

    #[test]
    fn a_request_goes_by_whom_it_is_of_and_the_lists_by_its_peer() {
        let network = "192.0.2.0/24".parse().unwrap();
        let of = |plan: Rollout| {
            let mut pick = Pick::new(1, &plan.by(By::Request));
            pick.set_share(Share::percent(50));
            pick
        };
        let peer = Some(IpAddr::from([192, 0, 2, 1]));
        let (half, ann) = (of(Rollout::canary([1])), Client::Named("ann"));
        for coin in [0, 9_999] {
            assert_eq!(half.request(peer, Some(ann), coin), half.client(ann));
        }
        assert_eq!(half.request(peer, None, 0), Side::Candidate);
        assert_eq!(half.request(peer, None, 9_999), Side::Stable);
        let excluding = of(Rollout::canary([1]).exclude(network));
        assert_eq!(excluding.request(peer, None, 0), Side::Stable);
    }

    #[test]
    fn single_connections_follow_their_coin() {
        let pick = pick(1, 5);
        let picked = (0..10_000).filter(|coin| pick.single(v4(1), *coin) == Side::Candidate);
        assert_eq!(picked.count(), 500);
    }
}
