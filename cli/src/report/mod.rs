//! A run as one page: follows.
