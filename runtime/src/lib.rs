//! What a locality stands on: executor, timers, mailbox, clock, ring, arenas, counted copies
