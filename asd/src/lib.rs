//! The ASD: the storage daemon of one disk or directory.
