//! What a rollout is to do, as plain data with documented defaults.

// Addresses are data; what can be done with them is in `std::net`.
use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::share::Share;

/// The shares of a canary that is given none of its own: 1, 5, 25 and 50 %, and then the flip.
pub const STEPS: [u8; 4] = [1, 5, 25, 50];
/// How long each step of a canary takes at least: 2 min.
pub const STEP_MIN: Duration = Duration::from_secs(2 * 60);
/// How many requests the candidate must have answered in each step and in the bake: 300, which without an error says with
/// 95 % confidence that at most 1 % fail.
pub const UNITS_MIN: u64 = 300;
/// How long a step or a bake may wait for that many before the rollout is paused: 10 min.
pub const STEP_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How long a candidate's first requests, and its first after the flip, are kept from the guards, for cold caches: 30 s,
/// or [`WARM_UP_UNITS`].
pub const WARM_UP: Duration = Duration::from_secs(30);
/// How many requests end the warm-up early: 50.
pub const WARM_UP_UNITS: u64 = 50;
/// How long the stable generation stays warm after a guarded flip, ready to take over again: 5 min.
pub const BAKE: Duration = Duration::from_secs(5 * 60);
/// How long it stays warm after an immediate one, where only a death, a stall or a failed check undoes it: 10 s.
pub const BAKE_IMMEDIATE: Duration = Duration::from_secs(10);
/// How long the checks of a candidate in preview may take: 60 s.
pub const CHECKS_DEADLINE: Duration = Duration::from_secs(60);
/// How long it may take until fresh connections are answered by the right generation after a flip or a rollback: 30 s.
pub const VERIFY_DEADLINE: Duration = Duration::from_secs(30);
/// In how many of 100 rollouts without a regression the guards together may abort: 1.
pub const FALSE_ABORTS: Share = Share::percent(1);
/// The rate of errors that is still tolerated when nothing can be compared with: 5 %, or twice what stable had.
pub const WORST_RATE: Share = Share::percent(5);
/// How long connections may wait after the flip without that anybody accepts one, before the rollout is undone: 2 s.
pub const STALL_AFTER: Duration = Duration::from_secs(2);
/// How many looks in a row may fail to measure before the rollout is paused: at the fourth it is.
pub const ERROR_LIMIT: u32 = 4;
/// How long further errors of the same client count as the one that was counted: 1 min.
pub const CLIENT_WINDOW: Duration = Duration::from_secs(60);
/// How long connections are counted before and after a flip, to see whether clients still arrive: 30 s.
pub const ACCEPTS_WINDOW: Duration = Duration::from_secs(30);
/// How often a generation that serves remembers how many it has accepted, to be able to tell: every 10 s.
pub const ACCEPTS_SAMPLE: Duration = Duration::from_secs(10);
/// After how many failed rollouts in a row automatic ones are refused: 3.
pub const FAILURES_MAX: u32 = 3;

/// How a candidate takes over.
///
/// ```
/// use std::time::Duration;
/// use handover::rollout::{Promotion, Rollout};
///
/// let by_hand = Rollout::blue_green().promotion(Promotion::ByHand);
/// let careful = Rollout::canary([1, 5, 25, 50])
///     .step_min(Duration::from_secs(600))
///     .units_min(3_000)
///     .exclude("10.0.0.7/32".parse()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use = "a plan does nothing until it is given to somebody"]
pub struct Rollout {
    pub(super) steps: Steps,
    pub(crate) by: By,
    pub(super) promotion: Promotion,
    pub(super) promotion_deadline: Option<Duration>,
    pub(super) step_min: Duration,
    pub(super) units_min: u64,
    pub(super) step_deadline: Duration,
    pub(super) warm_up: Duration,
    pub(super) warm_up_units: u64,
    pub(super) bake: Duration,
    pub(super) checks_deadline: Duration,
    pub(super) verify_deadline: Duration,
    pub(crate) guards: bool,
    pub(super) false_aborts: Share,
    pub(super) worst_rate: Share,
    pub(crate) stall_after: Duration,
    pub(super) error_limit: u32,
    pub(crate) client_window: Duration,
    pub(super) failures_max: u32,
    pub(super) include: Vec<Network>,
    pub(super) exclude: Vec<Network>,
}

impl Rollout {
    /// Flips as soon as the candidate is ready and its checks have passed, and keeps the stable generation warm for
    /// [`BAKE_IMMEDIATE`]. No guards, and no traffic is waited for.
    pub fn immediate() -> Self {
        Self {
            steps: Steps::default(),
            by: By::Client,
            promotion: Promotion::Automatic,
            promotion_deadline: None,
            step_min: STEP_MIN,
            units_min: 0,
            step_deadline: STEP_DEADLINE,
            warm_up: WARM_UP,
            warm_up_units: WARM_UP_UNITS,
            bake: BAKE_IMMEDIATE,
            checks_deadline: CHECKS_DEADLINE,
            verify_deadline: VERIFY_DEADLINE,
            guards: false,
            false_aborts: FALSE_ABORTS,
            worst_rate: WORST_RATE,
            stall_after: STALL_AFTER,
            error_limit: ERROR_LIMIT,
            client_window: CLIENT_WINDOW,
            failures_max: u32::MAX,
            include: Vec::new(),
            exclude: Vec::new(),
        }
    }

    /// All of the traffic at once after the checks, and then a bake of [`BAKE`] with the guards armed.
    pub fn blue_green() -> Self {
        Self {
            units_min: UNITS_MIN,
            bake: BAKE,
            guards: true,
            failures_max: FAILURES_MAX,
            ..Self::immediate()
        }
    }

    /// Growing shares of the traffic, in percent, and then the flip and a bake as in blue/green. The order does not
    /// matter; 0 is left out, and 100 is the flip.
    pub fn canary(percents: impl IntoIterator<Item = u8>) -> Self {
        Self::blue_green().steps(percents.into_iter().map(Share::percent))
    }

    /// The shares of a canary, if percents are not fine enough.
    pub fn steps(mut self, shares: impl IntoIterator<Item = Share>) -> Self {
        self.steps = shares.into_iter().collect::<Vec<_>>().into();
        self
    }

    /// What a share is a share of. Default: [`By::Client`].
    pub fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    /// Who decides on the flip. Default: [`Promotion::Automatic`].
    pub fn promotion(mut self, promotion: Promotion) -> Self {
        self.promotion = promotion;
        self
    }

    /// How long the operator may take to decide on a flip by hand before the candidate is given up. Default: as long as
    /// they want.
    pub fn promotion_deadline(mut self, time: Duration) -> Self {
        self.promotion_deadline = Some(time);
        self
    }

    /// How long each step takes at least. Default: [`STEP_MIN`].
    pub fn step_min(mut self, time: Duration) -> Self {
        self.step_min = time;
        self
    }

    /// How many requests the candidate must have answered in each step and in the bake. Default: [`UNITS_MIN`]; 0 for an
    /// immediate rollout. With 0, silence promotes.
    pub fn units_min(mut self, units: u64) -> Self {
        self.units_min = units;
        self
    }

    /// How long a step or the bake may take in all before a rollout that lacks data is paused. Default:
    /// [`STEP_DEADLINE`]. One that is shorter than the step is as long as the step.
    pub fn step_deadline(mut self, time: Duration) -> Self {
        self.step_deadline = time;
        self
    }

    /// How long, or until how many requests, the guards leave the candidate alone. Default: [`WARM_UP`],
    /// [`WARM_UP_UNITS`]; whichever comes first.
    pub fn warm_up(mut self, time: Duration, units: u64) -> Self {
        self.warm_up = time;
        self.warm_up_units = units;
        self
    }

    /// How long the stable generation stays warm after the flip, so that a rollback takes one more flip. Default:
    /// [`BAKE`]; [`BAKE_IMMEDIATE`] for an immediate rollout.
    pub fn bake(mut self, time: Duration) -> Self {
        self.bake = time;
        self
    }

    /// How long the checks of a candidate in preview may take. Default: [`CHECKS_DEADLINE`].
    pub fn checks_deadline(mut self, time: Duration) -> Self {
        self.checks_deadline = time;
        self
    }

    /// How long the verification of a flip may take before it counts as failed. Default: [`VERIFY_DEADLINE`].
    pub fn verify_deadline(mut self, time: Duration) -> Self {
        self.verify_deadline = time;
        self
    }

    /// Arms the guards, as blue/green and canary do by default.
    pub fn guarded(mut self) -> Self {
        self.guards = true;
        self
    }

    /// Lets traffic be judged by nobody, as in an immediate rollout. Deaths, stalls and failed checks undo a rollout in
    /// any case.
    pub fn unguarded(mut self) -> Self {
        self.guards = false;
        self
    }

    /// In what part of the rollouts without a regression the guards together may abort. Default: [`FALSE_ABORTS`].
    /// Nothing at all is taken for a hundredth of a percent.
    pub fn false_aborts(mut self, part: Share) -> Self {
        self.false_aborts = part;
        self
    }

    /// The rate of errors that is still tolerated when there is nothing to compare with. Default: [`WORST_RATE`].
    pub fn worst_rate(mut self, rate: Share) -> Self {
        self.worst_rate = rate;
        self
    }

    /// How long connections may wait after the flip without that anybody accepts one. Default: [`STALL_AFTER`]. Longer than
    /// the application ever stops to accept, in a collection of garbage or a burst of work.
    pub fn stall_after(mut self, time: Duration) -> Self {
        self.stall_after = time;
        self
    }

    /// At which look in a row that could not measure the rollout is paused. Default: [`ERROR_LIMIT`].
    pub fn error_limit(mut self, looks: u32) -> Self {
        self.error_limit = looks;
        self
    }

    /// How long further errors of the same client count as the one that was counted. Default: [`CLIENT_WINDOW`]. Long
    /// windows hide a regression behind clients that send much, short ones let one bad client look like many.
    pub fn client_window(mut self, time: Duration) -> Self {
        self.client_window = time;
        self
    }

    /// After how many failed rollouts in a row automatic ones are refused until somebody says otherwise. Default:
    /// [`FAILURES_MAX`]; without limit for an immediate rollout, which a signal can begin as well as a person.
    pub fn failures_max(mut self, failures: u32) -> Self {
        self.failures_max = failures;
        self
    }

    /// These clients are the candidate's as soon as it has any share at all. May be called more than once.
    pub fn include(mut self, clients: Network) -> Self {
        self.include.push(clients);
        self
    }

    /// These clients stay with the stable generation until the flip, even if they are included: health checkers above
    /// all, or a load balancer judges the host by a small share. May be called more than once.
    pub fn exclude(mut self, clients: Network) -> Self {
        self.exclude.push(clients);
        self
    }

    /// The same, with the clients, checks and deadlines of `other`: what belongs to the service and not to the strategy.
    pub(crate) fn for_clients_of(self, other: &Self) -> Self {
        Self {
            by: other.by,
            promotion_deadline: other.promotion_deadline,
            checks_deadline: other.checks_deadline,
            verify_deadline: other.verify_deadline,
            include: other.include.clone(),
            exclude: other.exclude.clone(),
            ..self
        }
    }

    /// The same, with the other's bake if that is shorter.
    pub(crate) fn baked_no_longer_than(self, other: &Self) -> Self {
        let bake = self.bake.min(other.bake);
        self.bake(bake)
    }

    /// The same, with an end to how long it may wait for a promotion, if it has none.
    pub(crate) fn promoted_within(self, time: Duration) -> Self {
        Self {
            promotion_deadline: self.promotion_deadline.or(Some(time)),
            ..self
        }
    }

    /// The same, with these fields instead of its own. What it does not have is an error, in words.
    pub(crate) fn changed(
        &self,
        changes: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, String> {
        let wrong = |error: serde_json::Error| format!("the plan cannot be understood: {error}");
        let mut plan = serde_json::to_value(self).map_err(wrong)?;
        if let Some(fields) = plan.as_object_mut() {
            fields.extend(changes.clone());
        }
        serde_json::from_value(plan).map_err(wrong)
    }

    /// How long the checks may take.
    pub(crate) fn checks_limit(&self) -> Duration {
        self.checks_deadline
    }

    /// How long a verification may take.
    pub(crate) fn verify_limit(&self) -> Duration {
        self.verify_deadline
    }

    /// Whether the candidate gets a share of the traffic before the flip.
    #[cfg(test)]
    pub(crate) fn is_canary(&self) -> bool {
        !self.steps.0.is_empty()
    }

    /// The share that follows on `share`; none if that is the flip.
    pub(super) fn step_after(&self, share: Share) -> Option<Share> {
        self.steps.0.iter().copied().find(|step| *step > share)
    }

    /// How many steps there are up to `share`, and in all.
    pub(super) fn step_number(&self, share: Share) -> (usize, usize) {
        let begun = self.steps.0.iter().filter(|step| **step <= share).count();
        (begun, self.steps.0.len())
    }
}

/// Immediate.
impl Default for Rollout {
    fn default() -> Self {
        Self::immediate()
    }
}

/// What a share is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Each connection by itself; a client may meet both releases.
    Connection,
    /// Each client (IPv4 address, IPv6 /64, or a key that the application gives); who has met the candidate stays with
    /// it. Of no use behind a proxy that shows one address.
    Client,
    /// Requests, for HTTP behind a proxy with pooled connections: the stable generation keeps the connections, and forwards
    /// requests to the candidate's listener of the same name. By the client's address, which stays on its side, unless
    /// `http::Server::split_key` says who a client is, as it has to behind a proxy that shows one address.
    ///
    /// Only `http::serve` and `Server::serve` do so, on this crate's TCP listeners and without TLS. WebSockets, CONNECT,
    /// gRPC and health checks stay with stable. It adds a hop, and what the candidate had begun when it died is a 502.
    Request,
}

/// Who decides that all traffic goes to the candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promotion {
    /// The rollout itself, once the steps and checks have passed.
    Automatic,
    /// The operator: the rollout waits, for as long as it takes, between its last step (blue/green: the checks) and the
    /// flip.
    ByHand,
}

/// Growing, above nothing and below everything: the flip is not a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Share>")]
pub(super) struct Steps(Vec<Share>);

impl From<Vec<Share>> for Steps {
    fn from(mut shares: Vec<Share>) -> Self {
        shares.retain(|share| (Share::per_10000(1)..Share::FULL).contains(share));
        shares.sort_unstable();
        shares.dedup();
        Self(shares)
    }
}

/// Addresses that begin alike: `10.1.0.0/16`, `2001:db8::/32`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is one of them. An IPv4 address that comes as an IPv6 one is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(bits_max);
        if bits > bits_max {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.bits)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

/// A text that is not an address, or an address, a slash and a number of bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkError(String);

impl fmt::Display for NetworkError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} is not a network like 10.1.0.0/16", self.0)
    }
}

impl std::error::Error for NetworkError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_and_the_flip_is_not_one_of_them() {
        let plan = Rollout::canary([50, 5, 0, 5, 100, 1]);
        let mut shares = Vec::new();
        let mut share = Share::NONE;
        while let Some(next) = plan.step_after(share) {
            shares.push(next.parts());
            share = next;
        }
        assert_eq!(shares, [100, 500, 5_000]);
        assert_eq!(plan.step_number(Share::percent(20)), (2, 3));
    }

    #[test]
    fn a_plan_survives_json_and_what_it_does_not_know_is_an_error() {
        let plan = Rollout::canary(STEPS)
            .include("10.1.0.0/16".parse().unwrap())
            .by(By::Request);
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&json).unwrap(), plan);
        assert!(serde_json::from_str::<Rollout>(r#"{"stepps":[100]}"#).is_err());
    }

    #[test]
    fn steps_from_outside_are_put_in_order_too() {
        let plan: Rollout = serde_json::from_str(r#"{"steps":[10000,500,100]}"#).unwrap();
        assert_eq!(plan.step_after(Share::NONE), Some(Share::percent(1)));
        assert_eq!(plan.step_after(Share::percent(5)), None);
    }

    #[test]
    fn a_plan_can_be_changed_field_by_field_and_not_beyond() {
        let changes = |text: &str| serde_json::from_str(text).unwrap();
        let plan = Rollout::canary(STEPS);
        let changed = plan.changed(&changes(r#"{"units_min":7,"steps":[2500]}"#));
        let expected = Rollout::canary([25]).units_min(7);
        assert_eq!(changed, Ok(expected));
        for wrong in [r#"{"steps":[20000]}"#, r#"{"tempo":1}"#] {
            assert!(plan.changed(&changes(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_network_is_its_leading_bits() {
        let contains = |network: &str, address: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(address.parse().unwrap())
        };
        assert!(contains("10.1.0.0/16", "10.1.255.1"));
        assert!(!contains("10.1.0.0/16", "10.2.0.1"));
        assert!(contains("10.1.0.0/16", "::ffff:10.1.2.3"));
        assert!(contains("0.0.0.0/0", "192.0.2.1"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("2001:db8::7", "2001:db8::7"));
        assert!(!contains("2001:db8::7", "2001:db8::8"));
        for wrong in [
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "x",
            "10.0.0.1/",
            "10.0.0.1/-1",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
