//! The last upgrades of a service, over all its generations.

use std::collections::VecDeque;

use super::request::Upgrade;
use crate::config::HISTORY_MAX;

/// The last [`HISTORY_MAX`] of them, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History(VecDeque<Upgrade>);

impl History {
    /// What another generation has kept; the newest of it if that was more. Nothing if it cannot be understood: a
    /// history is worth less than a handover.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let kept: Vec<Upgrade> = serde_json::from_slice(bytes).unwrap_or_default();
        let mut history = Self::default();
        kept.into_iter().for_each(|upgrade| history.add(upgrade));
        history
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).unwrap_or_default()
    }

    pub(crate) fn add(&mut self, upgrade: Upgrade) {
        if self.0.len() == HISTORY_MAX {
            self.0.pop_front();
        }
        self.0.push_back(upgrade);
    }

    pub(crate) fn last(&self) -> Option<&Upgrade> {
        self.0.back()
    }

    /// The upgrade to this generation. Numbers are not used again.
    pub(crate) fn of(&self, generation: u64) -> Option<&Upgrade> {
        let mut newest_first = self.0.iter().rev();
        newest_first.find(|upgrade| upgrade.generation == generation)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upgrade> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(generation: u64) -> Upgrade {
        let text = format!(r#"{{"generation":{generation},"from":1,"verdict":"aborted"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_oldest_is_forgotten_for_the_newest_and_what_is_left_survives_the_way_to_a_successor() {
        let mut history = History::default();
        let last = u64::try_from(HISTORY_MAX).unwrap() + 5;
        (1..=last).for_each(|generation| history.add(upgrade(generation)));
        let received = History::from_bytes(&history.to_bytes());
        assert_eq!(received, history);
        assert_eq!(received.iter().count(), HISTORY_MAX);
        assert_eq!(received.of(5), None);
        assert_eq!(received.of(6), Some(&upgrade(6)));
        assert_eq!(received.last(), Some(&upgrade(last)));
    }

    #[test]
    fn what_cannot_be_understood_is_an_empty_history() {
        assert_eq!(History::from_bytes(b"{}"), History::default());
    }
}
