//! Items, sessions, resend, reply cache, request handler
