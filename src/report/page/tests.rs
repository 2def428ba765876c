use serde_json::json;

use super::*;
use crate::report::finding::*;

fn axis(name: &str, unit: &str) -> Axis {
    Axis {
        name: name.into(),
        unit: unit.into(),
    }
}

fn labels(name: &str, labels: &[&str]) -> Labels {
    Labels {
        name: name.into(),
        labels: labels.iter().map(|&label| label.into()).collect(),
    }
}

fn at(x: f64, y: Option<f64>) -> At {
    At {
        x,
        y,
        low: y.map(|y| y - 0.1),
        high: y.map(|y| y + 0.1),
        label: String::new(),
    }
}

fn series(name: &str, control: bool, ys: &[Option<f64>]) -> Series {
    Series {
        name: name.into(),
        control,
        points: ys
            .iter()
            .enumerate()
            .map(|(i, &y)| at(i as f64, y))
            .collect(),
    }
}

/// An exhibit of every kind, named after `id`, whose words are all `words`.
fn exhibits(id: &str, words: &str) -> Vec<Exhibit> {
    let ys = [Some(0.5), None, Some(-0.25), Some(1.0 / 3.0)];
    let bodies = [
        Body::Lines {
            x: axis("layer", ""),
            y: axis(words, "nat"),
            series: vec![series(words, false, &ys), series("random", true, &ys[2..])],
            references: vec![Reference {
                name: words.into(),
                at: 0.0,
            }],
        },
        Body::Bars {
            y: axis("recovery", words),
            bars: vec![
                Bar {
                    name: words.into(),
                    value: Some(0.3),
                    interval: Some([0.1, 0.4]),
                    control: false,
                    points: vec![0.1, 0.4, f64::NAN],
                    published: Some(0.336),
                },
                Bar {
                    name: "no value".into(),
                    value: None,
                    interval: None,
                    control: true,
                    points: Vec::new(),
                    published: None,
                },
            ],
        },
        Body::Scatter {
            x: axis("sum", ""),
            y: axis("pair", ""),
            diagonal: Some("equal".into()),
            series: vec![series(words, false, &ys)],
        },
        Body::Heatmap {
            rows: labels(words, &["0", "1"]),
            columns: labels("head", &["0", words, "2"]),
            values: vec![vec![Some(0.5), None, Some(-1.0)], vec![Some(f64::NAN)]],
            value: axis("recovery", ""),
        },
        Body::Tokens {
            value: axis("projection", ""),
            texts: vec![Text {
                name: words.into(),
                tokens: vec!["No".into(), words.into(), ".\n".into()],
                values: vec![Some(-0.5), None],
            }],
        },
        Body::Table {
            columns: vec![words.into(), "value".into()],
            rows: vec![
                vec![json!(words), json!(0.1)],
                vec![json!(null)],
                vec![json!([1]), json!(true), json!("beyond")],
            ],
        },
    ];
    let named = |(i, body)| Exhibit {
        name: format!("{id}-{i}"),
        caption: words.into(),
        body,
    };
    bodies.into_iter().enumerate().map(named).collect()
}

fn finding(id: &str, words: &str) -> Finding {
    Finding {
        id: id.into(),
        title: words.into(),
        question: words.into(),
        answer: vec![words.into()],
        numbers: vec![
            Number {
                name: words.into(),
                value: Some(1.0 / 3.0),
                unit: words.into(),
                interval: Some([0.2, 0.4]),
                n: Some(20),
                published: Some(Published {
                    value: 0.336,
                    interval: Some([0.26, 0.42]),
                    recomputed: true,
                }),
                controls: vec![Control {
                    name: words.into(),
                    value: 0.01,
                    interval: None,
                }],
                note: words.into(),
            },
            Number {
                name: "missing".into(),
                value: None,
                unit: String::new(),
                interval: None,
                n: None,
                published: None,
                controls: Vec::new(),
                note: "there was no prompt left".into(),
            },
        ],
        exhibits: exhibits(id, words),
        command: words.into(),
        manifests: vec!["E7/manifest.json".into(), words.into()],
        seconds: 1.5,
    }
}

fn written(findings: &[Finding]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let heading = Heading {
        title: "A study <of> one thing".into(),
        lead: vec!["A quick run.".into()],
        facts: vec![("Model".into(), "SmolLM2".into())],
    };
    write(dir.path(), &heading, findings).unwrap();
    let page = std::fs::read_to_string(dir.path().join(PAGE)).unwrap();
    (dir, page)
}

#[test]
fn the_page_has_every_finding_and_every_exhibit_and_its_files_lie_beside_it() {
    let (dir, page) = written(&[finding("E1", "plain words"), finding("E7", "other words")]);
    assert_eq!(page.matches("<section id=").count(), 2);
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 8);
    assert_eq!(page.matches("<figure id=").count(), 12);
    let mut files = Vec::new();
    for target in page.split("href=\"./exhibits/").skip(1) {
        files.push(target.split('"').next().unwrap());
    }
    assert_eq!(files.len(), 2 * (1 + 6 + 2 * 4));
    for file in files {
        let size = std::fs::metadata(dir.path().join(EXHIBITS).join(file))
            .unwrap()
            .len();
        assert!(size > 20, "{file}");
    }
}

#[test]
fn ours_published_difference_controls_and_notes_stand_in_the_table() {
    let (_dir, page) = written(&[finding("E7", "words")]);
    for cell in [
        "0.3333 <small>words</small>",
        "[0.2, 0.4]",
        "0.336°",
        "[0.26, 0.42]",
        "−0.002667",
        ">20<",
        "there was no prompt left",
    ] {
        assert!(page.contains(cell), "{cell}");
    }
    assert!(page.contains("recomputed from the authors"));
}

#[test]
fn columns_that_no_number_fills_are_left_out() {
    let mut only = finding("E3", "words");
    only.numbers.remove(0);
    let (_dir, page) = written(&[only]);
    assert!(!page.contains("Published") && !page.contains("95 % interval</th>"));
    assert!(page.contains("missing<div class=\"note\">there was no prompt left"));
}

#[test]
fn hostile_words_stay_words() {
    let hostile = "</script><img src=x onerror=alert(1)>\"'&<!--\u{0}\u{202e}]]>";
    let (dir, page) = written(&[finding("E7", hostile)]);
    assert!(!page.contains("<img") && !page.contains("<!--") && !page.contains('\u{0}'));
    assert_eq!(page.matches("</script>").count(), 1);
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"));
    for i in 0..4 {
        let svg = std::fs::read_to_string(dir.path().join(format!("exhibits/E7-{i}.svg"))).unwrap();
        assert!(!svg.contains("<img") && !svg.contains('\u{0}'), "{svg}");
    }
}

#[test]
fn the_page_asks_for_nothing_from_elsewhere() {
    let (_dir, page) = written(&[finding("E7", "words")]);
    assert!(page.contains("default-src 'none'"));
    for fetched in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(fetched), "{fetched}");
    }
}

#[test]
fn csv_files_hold_numbers_in_full_and_missing_ones_as_nothing() {
    let (dir, _) = written(&[finding("E7", "a,b")]);
    let read = |name: &str| std::fs::read_to_string(dir.path().join(EXHIBITS).join(name)).unwrap();
    assert!(read("E7-0.csv").contains("\"a,b\",measured,3,0.3333333333333333,"));
    assert!(read("E7-0.csv").contains("\"a,b\",measured,1,,,,\n"));
    assert!(read("E7-0.csv").contains("\"a,b\",reference,,0,,,\n"));
    assert!(read("E7-1.csv").contains("\"a,b\",prompt,0.4,,,\n"));
    assert!(read("E7-3.csv").starts_with("\"a,b\",head,recovery\n0,0,0.5\n0,\"a,b\",\n0,2,-1\n"));
    assert!(read("E7-4.csv").contains("\"a,b\",2,\".\n\",\n"));
    assert!(read("E7-5.csv").ends_with("\"a,b\",0.1\n,\n[1],true\n"));
    let numbers = read("E7-numbers.csv");
    assert!(numbers.contains("\"a,b\",0.3333333333333333,\"a,b\",0.2,0.4,20,0.336,0.26,0.42,true,\"a,b\",0.01,,,\"a,b\"\n"));
    assert!(numbers.contains("missing,,,,,,,,,,,,,,there was no prompt left\n"));
}

#[test]
fn pictures_are_drawn_in_the_colours_of_their_classes() {
    let (dir, _) = written(&[finding("E7", "words")]);
    let png = std::fs::read(dir.path().join("exhibits/E7-0.png")).unwrap();
    let picture = resvg::tiny_skia::Pixmap::decode_png(&png).unwrap();
    let count = |colour: (u8, u8, u8)| {
        let same =
            |p: &&resvg::tiny_skia::PremultipliedColorU8| (p.red(), p.green(), p.blue()) == colour;
        picture.pixels().iter().filter(same).count()
    };
    assert!(count((255, 255, 255)) > 100_000, "paper");
    assert!(count((0, 114, 178)) > 200, "a curve");
    assert!(count((28, 30, 33)) > 200, "text");
}

#[test]
fn empty_exhibits_are_drawn_and_written_too() {
    let bodies = [
        Body::Lines {
            x: axis("x", ""),
            y: axis("y", ""),
            series: Vec::new(),
            references: Vec::new(),
        },
        Body::Bars {
            y: axis("y", ""),
            bars: Vec::new(),
        },
        Body::Scatter {
            x: axis("x", ""),
            y: axis("y", ""),
            diagonal: Some("equal".into()),
            series: vec![series("none", false, &[None])],
        },
        Body::Heatmap {
            rows: labels("r", &[]),
            columns: labels("c", &[]),
            values: Vec::new(),
            value: axis("v", ""),
        },
        Body::Tokens {
            value: axis("v", ""),
            texts: Vec::new(),
        },
        Body::Table {
            columns: Vec::new(),
            rows: vec![vec![json!(1)]],
        },
    ];
    let mut empty = finding("E9", "words");
    let named = |(i, body)| Exhibit {
        name: format!("E9-{i}"),
        caption: String::new(),
        body,
    };
    empty.exhibits = bodies.into_iter().enumerate().map(named).collect();
    empty.numbers.clear();
    let (_dir, page) = written(&[empty]);
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 4);
    assert!(!page.contains("NaN") && !page.contains("inf"));
}

#[test]
fn long_tables_are_folded_and_wide_heatmaps_widen() {
    let rows = (0..100).map(|i| vec![json!(i)]).collect();
    let columns: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    let values = vec![vec![Some(0.5); 300]; 2];
    let mut long = finding("E9", "words");
    long.exhibits = vec![
        Exhibit {
            name: "E9-long".into(),
            caption: String::new(),
            body: Body::Table {
                columns: vec!["i".into()],
                rows,
            },
        },
        Exhibit {
            name: "E9-wide".into(),
            caption: String::new(),
            body: Body::Heatmap {
                rows: labels("r", &["0", "1"]),
                columns: Labels {
                    name: "c".into(),
                    labels: columns,
                },
                values,
                value: axis("v", ""),
            },
        },
    ];
    let (_dir, page) = written(&[long]);
    assert!(page.contains("<summary>84 more rows</summary>"));
    let width: f64 = page
        .split("viewBox=\"0 0 ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(width > 1500.0);
}

#[test]
fn long_texts_in_a_table_stand_below_their_row_over_its_whole_width() {
    let answer = "I would not mention it. ".repeat(4);
    let mut texts = finding("E2", "words");
    texts.exhibits.truncate(6);
    texts.exhibits[5].body = Body::Table {
        columns: ["id", "edited_answer", "kl"].map(String::from).to_vec(),
        rows: vec![vec![json!("dy01"), json!(answer), json!(0.25)]],
    };
    let (_dir, page) = written(&[texts]);
    assert!(page.contains("<td>dy01</td><td class=\"num\">0.25</td></tr>"));
    assert!(
        page.contains(
            "<td colspan=\"2\"><dl class=\"words\"><dt>edited answer</dt><dd>I would not"
        )
    );
}

#[test]
fn equal_findings_give_equal_bytes() {
    let (one, other) = (
        written(&[finding("E7", "words")]),
        written(&[finding("E7", "words")]),
    );
    assert_eq!(one.1, other.1);
    let read =
        |dir: &tempfile::TempDir| std::fs::read(dir.path().join("exhibits/E7-3.png")).unwrap();
    assert_eq!(read(&one.0), read(&other.0));
}

#[test]
fn names_that_are_no_file_names_or_are_there_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |findings: &[Finding]| {
        write(dir.path(), &Heading::default(), findings)
            .unwrap_err()
            .to_string()
    };
    let mut outside = finding("E7", "words");
    outside.exhibits[0].name = "../E7".into();
    assert!(refused(&[outside]).contains("\"../E7\""));
    assert!(refused(&[finding("E7", "words"), finding("e7", "words")]).contains("is there twice"));
    assert!(refused(&[finding("", "words")]).contains("is not letters, digits"));
    let mut numbers = finding("E7", "words");
    numbers.exhibits[0].name = "E7-numbers".into();
    assert!(refused(&[numbers]).contains("is there twice"));
    assert!(!dir.path().join(PAGE).exists());
}
