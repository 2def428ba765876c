//! The whole document: style, heading, contents, a section a finding.

use super::super::finding::Finding;
use super::Heading;
use super::escape::text;
use super::section;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing may be fetched, from anywhere.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

pub(super) fn html(heading: &Heading, findings: &[Finding]) -> String {
    let mut page = format!(
        concat!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n",
            "<meta name=\"color-scheme\" content=\"light dark\">\n",
            "<meta http-equiv=\"Content-Security-Policy\" content=\"{}\">\n",
            "<link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n"
        ),
        POLICY,
        text(&heading.title),
        STYLE
    );
    page.push_str(&contents(findings));
    page.push_str("<main>\n");
    page.push_str(&head(heading, findings));
    for finding in findings {
        page.push_str(&section::html(finding));
    }
    page.push_str("</main>\n<div id=\"hover\" role=\"status\" hidden></div>\n");
    page.push_str(&format!("<script>\n{SCRIPT}</script>\n</body>\n</html>\n"));
    page
}

fn contents(findings: &[Finding]) -> String {
    let entry = |finding: &Finding| {
        let (id, title) = (text(&finding.id), text(&finding.title));
        format!("<li><a href=\"#{id}\"><b>{id}</b> <span>{title}</span></a></li>\n")
    };
    let entries: String = findings.iter().map(entry).collect();
    format!("<nav aria-label=\"Experiments\">\n<ol>\n{entries}</ol>\n</nav>\n")
}

fn head(heading: &Heading, findings: &[Finding]) -> String {
    let mut head = format!("<header>\n<h1>{}</h1>\n", text(&heading.title));
    for paragraph in &heading.lead {
        head.push_str(&format!("<p class=\"lead\">{}</p>\n", text(paragraph)));
    }
    head.push_str("<dl class=\"facts\">\n");
    let seconds: f64 = findings
        .iter()
        .map(|finding| finding.seconds)
        .filter(|s| s.is_finite())
        .sum();
    let time = (
        "Time of all experiments".to_owned(),
        section::duration(seconds),
    );
    for (name, value) in heading.facts.iter().chain([&time]) {
        head.push_str(&format!(
            "<div><dt>{}</dt><dd>{}</dd></div>\n",
            text(name),
            text(value)
        ));
    }
    head.push_str("</dl>\n</header>\n");
    head
}
