//! Who may do what, within which limits, and what did happen.
