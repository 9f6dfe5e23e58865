//! The settings of every session.

/// What every session sets. Statements are short and many; compiling one costs more than running it. They are written
/// for `read committed`: a stricter level of the role would fail those that meet. And a 202 must be as safe as the
/// server can make it, whatever the role's own setting is.
pub const SESSION: &str = "select set_config('jit', 'off', false),
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('synchronous_commit', case current_setting('synchronous_commit')
        when 'off' then 'on' else current_setting('synchronous_commit') end, false)";
