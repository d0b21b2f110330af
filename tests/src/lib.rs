//! Whole-system tests: see the folders sim and e2e.
