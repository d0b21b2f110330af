//! Model checking: every order of events of a small system, to the end. What is checked is the rule, written down anew and apart from the code,
//! so that an error in the rule itself is found; that the code keeps to the rule is what the simulation and the crates' own tests show.
//!
//! One file per rule. Each prints how many states there were, and each has seeded errors that the checker must find.
#![forbid(unsafe_code)]

mod fencing;
