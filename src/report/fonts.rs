//! The fonts that pictures are drawn with: Inter, regular and bold, cut down to Latin (`assets/fonts`).

use std::sync::{Arc, OnceLock};

use resvg::usvg::fontdb;

/// What an SVG names: Inter where a browser has it, else its plain sans-serif.
pub const FAMILY: &str = "Inter, sans-serif";

/// The font database of the crate: these fonts and no others, so that a PNG does not depend on the machine.
pub fn database() -> Arc<fontdb::Database> {
    static DATABASE: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let load = || {
        let mut database = fontdb::Database::new();
        database.load_font_data(include_bytes!("../../assets/fonts/Inter-Regular.ttf").to_vec());
        database.load_font_data(include_bytes!("../../assets/fonts/Inter-Bold.ttf").to_vec());
        database.set_sans_serif_family("Inter");
        Arc::new(database)
    };
    DATABASE.get_or_init(load).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fonts_are_inter_in_two_weights() {
        let database = database();
        let mut faces: Vec<_> = database
            .faces()
            .map(|face| (face.families[0].0.as_str(), face.weight.0))
            .collect();
        faces.sort_unstable();
        assert_eq!(faces, [("Inter", 400), ("Inter", 700)]);
    }
}
