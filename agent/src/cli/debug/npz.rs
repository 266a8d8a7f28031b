//! NumPy archives of `f32` matrices: a ZIP file whose members are stored, each an `.npy` file.
//!
//! Deliberately absent: compression, other types, archives above the plain ZIP format's 4 GiB.

/// A matrix, row by row.
#[derive(Debug)]
pub(super) struct Array {
    /// Its key in the archive.
    pub(super) name: String,
    /// Number of rows.
    pub(super) rows: usize,
    /// Length of a row.
    pub(super) columns: usize,
    /// `rows * columns` values.
    pub(super) values: Vec<f32>,
}

/// The archive is too large for its format.
#[derive(Debug, thiserror::Error)]
#[error("write an archive of more than 4 GiB: ask for fewer rows")]
pub(super) struct TooLarge;

/// The archive's bytes.
pub(super) fn archive(arrays: &[Array]) -> Result<Vec<u8>, TooLarge> {
    let mut zip = Vec::new();
    let mut directory = Vec::new();
    for array in arrays {
        let member = member(array);
        let name = format!("{}.npy", array.name);
        let offset = u32::try_from(zip.len()).map_err(|_| TooLarge)?;
        let header = member_header(&member, &name)?;
        zip.extend_from_slice(b"PK\x03\x04");
        zip.extend_from_slice(&header);
        zip.extend_from_slice(name.as_bytes());
        zip.extend_from_slice(&member);
        directory.extend_from_slice(b"PK\x01\x02\x14\x00");
        directory.extend_from_slice(&header);
        // Comment length, disk, attributes (2 and 4 bytes).
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let count = u16::try_from(arrays.len()).map_err(|_| TooLarge)?.to_le_bytes();
    let offset = u32::try_from(zip.len()).map_err(|_| TooLarge)?;
    let len = u32::try_from(directory.len()).map_err(|_| TooLarge)?;
    zip.extend_from_slice(&directory);
    zip.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    zip.extend_from_slice(&count);
    zip.extend_from_slice(&count);
    zip.extend_from_slice(&len.to_le_bytes());
    zip.extend_from_slice(&offset.to_le_bytes());
    zip.extend_from_slice(&[0; 2]);
    Ok(zip)
}

/// What a member's two headers have in common, from "version needed" to "extra length".
fn member_header(member: &[u8], name: &str) -> Result<Vec<u8>, TooLarge> {
    let size = u32::try_from(member.len()).map_err(|_| TooLarge)?.to_le_bytes();
    let name_len = u16::try_from(name.len()).map_err(|_| TooLarge)?;
    // Version 2.0, no flags, stored, midnight of 1 January 1980: the same bytes every time.
    let mut header = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
    header.extend_from_slice(&crc32(member).to_le_bytes());
    header.extend_from_slice(&size);
    header.extend_from_slice(&size);
    header.extend_from_slice(&name_len.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    Ok(header)
}

/// An `.npy` file, version 1.0.
fn member(array: &Array) -> Vec<u8> {
    let mut header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}",
        array.rows, array.columns
    );
    // Magic, version and length are 10 bytes; the values start at a multiple of 64.
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(array.values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

/// The ZIP format's checksum (reflected, polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0_u32; 256];
    for (index, entry) in (0_u32..).zip(table.iter_mut()) {
        *entry =
            (0..8).fold(index, |crc, _| (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1)));
    }
    !bytes
        .iter()
        .fold(!0, |crc, byte| table[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_zip_format() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn an_archive_holds_each_matrix_as_an_aligned_npy_file() {
        let array =
            Array { name: "a.logits".to_owned(), rows: 1, columns: 2, values: vec![1.0, -2.0] };
        let bytes = archive(&[array]).expect("small");
        assert_eq!(&bytes[..4], b"PK\x03\x04");
        let npy = bytes.windows(6).position(|w| w == b"\x93NUMPY").expect("a member");
        let values = &bytes[npy + 128..npy + 136];
        assert_eq!(values, [1.0_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
        assert!(bytes[npy..npy + 128].windows(6).any(|w| w == b"(1, 2)"));
    }
}
