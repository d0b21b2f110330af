//! Message bodies of every fop: data only, and the one codec
