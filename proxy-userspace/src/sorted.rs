//! A map for few keys of which there are many maps: most Services have one slice, one frontend and a handful of endpoints,
//! and a B-tree's smallest node has room for eleven.

/// Keys and values in one allocation of just their size, sorted. A single insertion costs as much as there are keys;
/// [`Extend`] sorts once for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord, V> Sorted<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().and_then(|at| self.0.get(at)).map(|(_, value)| value)
    }

    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// The value that was there before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, known)| std::mem::replace(known, value)),
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Room for so many more, at once: what is given back of a list that has grown is a hole of no use to others.
    pub fn reserve(&mut self, more: usize) {
        self.0.reserve_exact(more);
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        let (_, value) = self.0.remove(at);
        self.0.shrink_to_fit();
        Some(value)
    }

    /// Removes and returns what `gone` says.
    pub fn extract(&mut self, gone: impl Fn(&K, &V) -> bool) -> Vec<(K, V)> {
        let gone: Vec<_> = self.0.extract_if(.., |(key, value)| gone(key, value)).collect();
        if !gone.is_empty() {
            self.0.shrink_to_fit();
        }
        gone
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order of keys, as all that follow.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.0.iter_mut().map(|(key, value)| (&*key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<K, V> IntoIterator for Sorted<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Ord, V> Extend<(K, V)> for Sorted<K, V> {
    /// Of several values for a key the first one counts.
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, more: I) {
        self.0.extend(more);
        self.0.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.0.dedup_by(|(a, _), (b, _)| a == b);
        self.0.shrink_to_fit();
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Sorted<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(list: I) -> Self {
        let mut sorted = Self::default();
        sorted.extend(list);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        /// Whatever is put in and taken out: what a B-tree would hold, and no more room than for that.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0_u8..4, 0_u8..16, 0_u8..8), 0..60)) {
            let (mut sorted, mut tree) = (Sorted::default(), BTreeMap::new());
            for (step, key, value) in steps {
                match step {
                    0 => proptest::prop_assert_eq!(sorted.insert(key, value), tree.insert(key, value)),
                    1 => proptest::prop_assert_eq!(sorted.remove(&key), tree.remove(&key)),
                    2 => {
                        let more = [(key, value), (key ^ 1, value), (key, value + 1)];
                        sorted.extend(more);
                        for (key, value) in more {
                            tree.entry(key).or_insert(value);
                        }
                    }
                    _ => {
                        let gone = sorted.extract(|_, known| *known == value);
                        let taken: Vec<_> = tree.extract_if(.., |_, known| *known == value).collect();
                        proptest::prop_assert_eq!(gone, taken);
                    }
                }
                proptest::prop_assert!(sorted.iter().eq(tree.iter()));
                proptest::prop_assert_eq!(sorted.get(&key), tree.get(&key));
                proptest::prop_assert_eq!(sorted.0.capacity(), sorted.0.len());
            }
        }
    }
}
