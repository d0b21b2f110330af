//! What a backend keeps of each connection, found by the connection's place: a name's lower half, which one connection has at a time.
//!
//! Bound: the machine's connections. A look-up costs a comparison.

use crate::connection::ConnectionId;

/// Values by connection.
pub(crate) struct ConnectionTable<T> {
    places: Vec<Option<(ConnectionId, T)>>,
    count: usize,
}

impl<T> Default for ConnectionTable<T> {
    fn default() -> ConnectionTable<T> {
        ConnectionTable { places: Vec::new(), count: 0 }
    }
}

impl<T> ConnectionTable<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&T> {
        let (found, value) = self.places.get(id.place())?.as_ref()?;
        (*found == id).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let (found, value) = self.places.get_mut(id.place())?.as_mut()?;
        (*found == id).then_some(value)
    }

    /// Takes the place of whatever was there.
    pub(crate) fn insert(&mut self, id: ConnectionId, value: T) {
        let place = id.place();
        if place >= self.places.len() {
            self.places.resize_with(place + 1, || None);
        }
        self.count += usize::from(self.places[place].is_none());
        self.places[place] = Some((id, value));
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<T> {
        self.get(id)?;
        self.count -= 1;
        self.places[id.place()].take().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_own_and_not_what_has_its_place_now() {
        let (old, new, other) = (ConnectionId::new(1, 3), ConnectionId::new(2, 3), ConnectionId::new(1, 0));
        let mut table = ConnectionTable::default();
        assert!(table.is_empty() && table.get(old).is_none());
        table.insert(old, "old");
        table.insert(other, "other");
        assert_eq!((table.get(old), table.get(new), table.get(other)), (Some(&"old"), None, Some(&"other")));
        assert_eq!(table.get_mut(old), Some(&mut "old"));
        assert_eq!(table.get_mut(new), None);
        assert_eq!(table.remove(old), Some("old"));
        table.insert(new, "new");
        assert_eq!(table.get(old), None);
        assert_eq!([table.remove(old), table.remove(new)], [None, Some("new")]);
        assert_eq!((table.remove(other), table.is_empty()), (Some("other"), true));
    }
}
