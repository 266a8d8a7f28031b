//! What the quickstart says: steps as they go by, and at the end everything that is needed to go
//! on, ready to be copied.

use std::path::Path;
use std::time::Duration;

use fulmar_policy::audit::Verified;
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{OwoColorize as _, Stream, Style};
use serde_json::json;

use super::owner::Release;
use super::{Answer, Format, Stay};

/// Says what happens.
#[derive(Debug)]
pub(crate) struct Report {
    format: Format,
    bar: ProgressBar,
}

/// Everything there is to say at the end.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) dir: &'a Path,
    pub(super) elapsed: Duration,
    pub(super) question: &'a str,
    pub(super) answer: &'a Answer,
    pub(super) device_id: &'a str,
    pub(super) release: &'a Release,
    pub(super) verified: &'a Verified,
    pub(super) console_url: &'a str,
    pub(super) api_url: &'a str,
    pub(super) admin: &'a str,
    pub(super) admin_password: &'a str,
    pub(super) app_token: &'a str,
    pub(super) stay: Stay,
}

impl Report {
    pub(super) fn new(format: Format) -> Self {
        let bar = match format {
            Format::Json => ProgressBar::hidden(),
            Format::Prose => ProgressBar::new_spinner(),
        };
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self { format, bar }
    }

    /// The next step begins.
    pub(super) fn step(&mut self, what: &str) {
        self.bar.set_message(String::new());
        if self.format == Format::Prose {
            self.bar.suspend(|| {
                println!("{} {what}", "·".if_supports_color(Stream::Stdout, |t| t.cyan()));
            });
        }
    }

    /// The step goes on.
    pub(super) fn progress(&mut self, bytes_done: u64, bytes_total: u64) {
        if bytes_total > 0 {
            let size = crate::cli::output::size;
            self.bar.set_message(format!("{} of {}", size(bytes_done), size(bytes_total)));
        }
        self.bar.tick();
    }

    /// All is done.
    ///
    /// # Errors
    /// When standard output is gone.
    pub(super) fn finished(&mut self, facts: &Facts<'_>) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        match self.format {
            Format::Json => print_json(facts),
            Format::Prose => {
                print_prose(facts);
                Ok(())
            }
        }
    }
}

/// No secrets: what this prints ends up in logs. The console's password lies in `quickstart.json`,
/// and `fulmar token mint` makes tokens.
fn print_json(facts: &Facts<'_>) -> anyhow::Result<()> {
    let object = json!({
        "answer": facts.answer.text,
        "tokens_per_second": facts.answer.tokens_per_second,
        "device_id": facts.device_id,
        "model": {
            "name": facts.release.name.to_string(),
            "digest": facts.release.digest.to_string(),
        },
        "audit": {
            "entries": facts.verified.entries,
            // The whole log holds, or there was nothing to print; this is about the answer's entry.
            "verified": facts.verified.covers(facts.answer.audit_entry),
        },
        "console_url": facts.console_url,
        "api_url": facts.api_url,
    });
    println!("{object}");
    Ok(())
}

fn print_prose(facts: &Facts<'_>) {
    let heading = |text: &str| {
        let style = Style::new().bold();
        println!("\n{}", text.if_supports_color(Stream::Stdout, |t| t.style(style)));
    };
    let model = facts.release.name.to_string();
    let device_dir = shell_word(&facts.dir.join("device").display().to_string());

    heading("The device answered");
    println!("  question  {}", facts.question);
    println!("  answer    {}", facts.answer.text);
    println!(
        "  {:.0} tokens/s; {model} {}; {:.1} s from the start",
        facts.answer.tokens_per_second,
        facts.release.digest,
        facts.elapsed.as_secs_f64()
    );

    heading("The console");
    println!("  {}", facts.console_url);
    println!("  sign in as {} with the password {}", facts.admin, facts.admin_password);

    heading("Ask it yourself");
    println!(
        "curl {}/chat/completions \\\n  -H 'Authorization: Bearer {}' \\\n  \
         -H 'Content-Type: application/json' \\\n  \
         -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \
         \"close the valve in hall 3\"}}], \"temperature\": 0}}'",
        facts.api_url, facts.app_token
    );
    println!();
    println!(
        "from openai import OpenAI\n\
         client = OpenAI(base_url=\"{}\", api_key=\"{}\")\n\
         answer = client.chat.completions.create(\n    \
             model=\"{model}\",\n    \
             messages=[{{\"role\": \"user\", \"content\": \"close the valve in hall 3\"}}],\n    \
             temperature=0,\n)\n\
         print(answer.choices[0].message.content)",
        facts.api_url, facts.app_token
    );

    heading("What was recorded");
    println!(
        "  the question is entry {} of {}, all verified, {} signed by the device",
        facts.answer.audit_entry, facts.verified.entries, facts.verified.signed_entries
    );
    let program = program();
    println!("{program} audit show {} --dir {device_dir}", facts.answer.audit_entry);
    println!("{program} audit verify --dir {device_dir}");

    let dir = facts.dir.display();
    match facts.stay {
        Stay::UntilInterrupted => println!("\nEverything lies in {dir}. Ctrl-C stops it."),
        Stay::Once => println!(
            "\nEverything lies in {dir}. It stops now; this serves it again, at the same addresses:\n\
             {program} quickstart --dir {}",
            shell_word(&dir.to_string())
        ),
    }
}

/// This program's whole path, so that what is printed works wherever it was started from.
fn program() -> String {
    std::env::current_exe()
        .map_or_else(|_| "fulmar".into(), |path| shell_word(&path.display().to_string()))
}

/// A word for a shell, quoted where it must be.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_a_shell_is_quoted_where_it_must_be() {
        assert_eq!(shell_word("/tmp/a-b_c.d"), "/tmp/a-b_c.d");
        assert_eq!(shell_word("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
