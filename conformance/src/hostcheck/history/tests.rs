//! Histories made by hand: for each invariant one that breaks it, and ones that keep it.
