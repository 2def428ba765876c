//! One finding: what was asked, what was found, the numbers, the exhibits, and how to make it again.

use super::super::finding::Finding;
use super::escape::{href, text};
use super::{EXHIBITS, exhibit, numbers};

pub(super) fn html(finding: &Finding) -> String {
    let (id, title) = (text(&finding.id), text(&finding.title));
    let mut section = format!(
        "<section id=\"{id}\">\n<h2><span class=\"id\">{id}</span> {title}</h2>\n<p class=\"question\">{}</p>\n",
        text(&finding.question)
    );
    for paragraph in &finding.answer {
        section.push_str(&format!("<p>{}</p>\n", text(paragraph)));
    }
    if !finding.numbers.is_empty() {
        section.push_str(&numbers::html(&finding.numbers));
        section.push_str(&format!(
            "<p class=\"files\">Numbers in full: <a href=\"./{EXHIBITS}/{id}-numbers.csv\">CSV</a></p>\n"
        ));
    }
    for exhibit in &finding.exhibits {
        section.push_str(&exhibit::html(exhibit));
    }
    section.push_str(&provenance(finding));
    section.push_str("</section>\n");
    section
}

fn provenance(finding: &Finding) -> String {
    let mut source = format!(
        "<div class=\"source\">\n<p>Made in {} by</p>\n<pre><code>{}</code></pre>\n",
        duration(finding.seconds),
        text(&finding.command)
    );
    if !finding.manifests.is_empty() {
        let entry = |path: &String| match href(path) {
            Some(target) => format!(
                "<li><a href=\"{target}\"><code>{}</code></a></li>\n",
                text(path)
            ),
            None => format!("<li><code>{}</code></li>\n", text(path)),
        };
        let entries: String = finding.manifests.iter().map(entry).collect();
        source.push_str(&format!(
            "<p>from</p>\n<ul class=\"manifests\">\n{entries}</ul>\n"
        ));
    }
    source.push_str("</div>\n");
    source
}

/// `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "an unknown time".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn durations_are_short() {
        let durations = [0.42, 12.3, 200.0, 7500.0, f64::NAN].map(super::duration);
        assert_eq!(
            durations,
            [
                "0.4 s",
                "12 s",
                "3 min 20 s",
                "2 h 5 min",
                "an unknown time"
            ]
        );
    }
}
