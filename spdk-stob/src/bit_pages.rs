//! Where the bits of free space stand on the device: which page of bits is in which slot, and which have changed since.
//!
//! A page holds the bits of one group of blocks less than a slot has blocks (its header takes the room of one). A page without a place is all
//! free. Only pages that changed are written at a checkpoint. What they say is what those who come after a power cut may use:
//! everything that no extent owns (`allocator` knows also what is reserved at this moment).

use base::BlockExtent;
use base::units::{narrow, wide};

use crate::allocator::GROUP_BLOCKS;
use crate::extents::Place;
use crate::format::regions::Regions;

#[derive(Clone, Copy, Debug, Default)]
struct BitPage {
    place: Option<Place>,
    is_dirty: bool,
}

/// The pages of bits of a device. Empty if it has no slots.
#[derive(Clone, Debug, Default)]
pub struct BitPages {
    area_start: u64,
    groups_per_page: u64,
    pages: Vec<BitPage>,
}

impl BitPages {
    /// All blocks are free.
    #[must_use]
    pub fn new(regions: &Regions) -> BitPages {
        let groups_per_page = regions.slot_blocks.saturating_sub(1);
        let groups = regions.data.count.div_ceil(GROUP_BLOCKS);
        let pages = groups.checked_div(groups_per_page).map_or(0, |_| groups.div_ceil(groups_per_page));
        BitPages {
            area_start: regions.data.start,
            groups_per_page,
            pages: vec![BitPage::default(); narrow(pages)],
        }
    }

    /// Pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The groups of blocks whose bits are in a page.
    #[must_use]
    pub fn groups(&self, index: usize) -> std::ops::Range<usize> {
        let first = wide(index) * self.groups_per_page;
        narrow(first)..narrow(first + self.groups_per_page)
    }

    /// The owners of `extent` have changed.
    pub fn mark(&mut self, extent: BlockExtent) {
        if extent.is_empty() || self.pages.is_empty() {
            return;
        }
        let page =
            |block: u64| narrow(block.saturating_sub(self.area_start) / GROUP_BLOCKS / self.groups_per_page);
        let (first, last) = (page(extent.start), page(extent.end() - 1));
        let last = last.min(self.pages.len() - 1);
        for page in self.pages.get_mut(first..=last).unwrap_or_default() {
            page.is_dirty = true;
        }
    }

    /// All pages have to be written.
    pub fn mark_all(&mut self) {
        self.pages.iter_mut().for_each(|page| page.is_dirty = true);
    }

    /// The first page from `from` on that has to be written.
    #[must_use]
    pub fn next_dirty(&self, from: usize) -> Option<usize> {
        (from..self.pages.len()).find(|index| self.pages[*index].is_dirty)
    }

    /// A page was written to `place`, or is all free; gives the slot where it stood before.
    pub fn written(&mut self, index: usize, place: Option<Place>) -> Option<u64> {
        let page = self.pages.get_mut(index)?;
        page.is_dirty = false;
        std::mem::replace(&mut page.place, place).map(|old| old.slot)
    }

    /// Pages that stand on the device, from `from` on.
    pub fn places_from(&self, from: usize) -> impl Iterator<Item = (usize, Place)> + '_ {
        (from..self.pages.len()).filter_map(|index| Some((index, self.pages[index].place?)))
    }

    /// Says where a page stands. False, and nothing changed, if there is no such page or it has a place.
    #[must_use]
    pub fn set_place(&mut self, index: u64, place: Place) -> bool {
        match self.pages.get_mut(narrow(index)) {
            Some(page) if page.place.is_none() => {
                page.place = Some(place);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // the numbers of tests are small
mod tests {
    use super::*;
    use base::units::{BLOCK_BYTES, GIB};

    #[test]
    fn what_is_marked_is_what_the_groups_cover() {
        let regions = Regions::for_device(4 * GIB / BLOCK_BYTES).unwrap();
        let mut bits = BitPages::new(&regions);
        assert_eq!((bits.len(), bits.groups(1)), (11, 3..6));
        let page = 3 * GROUP_BLOCKS;
        bits.mark(BlockExtent { start: regions.data.start + page - 1, count: 2 });
        assert_eq!((bits.next_dirty(0), bits.next_dirty(1), bits.next_dirty(2)), (Some(0), Some(1), None));
        let place = Place { slot: 4, checksum: 5 };
        assert_eq!(bits.written(0, Some(place)), None);
        assert_eq!(bits.written(0, None), Some(4));
        assert!(bits.set_place(0, place) && !bits.set_place(0, place) && !bits.set_place(11, place));
        assert_eq!(bits.places_from(0).collect::<Vec<_>>(), [(0, place)]);
        bits.mark(BlockExtent { start: regions.data.end() - 1, count: 1 });
        assert_eq!(bits.next_dirty(2), Some(10));
    }
}
